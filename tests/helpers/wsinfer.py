"""What WSInfer requires of a model's config."""

# The requirements of wsinfer-zoo's schemas/model-config.schema.json.
SCHEMA = {
    "type": "object",
    "required": [
        "spec_version", "architecture", "num_classes", "patch_size_pixels", "spacing_um_px", "class_names", "transform",
    ],
    "properties": {
        "spec_version": {"enum": ["1.0"]},
        "architecture": {"type": "string"},
        "num_classes": {"type": "integer", "minimum": 1},
        "patch_size_pixels": {"type": "integer", "minimum": 1},
        "spacing_um_px": {"type": "number", "minimum": 0},
        "class_names": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "transform": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "name": {"enum": ["Resize", "ToTensor", "Normalize"]},
                    "arguments": {"type": "object"},
                },
            },
        },
    },
}  # fmt: skip
