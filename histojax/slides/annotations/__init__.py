"""Annotations of slides: regions from GeoJSON, and labelled training tiles cut from them."""
