"""The page of published sets, written from their recipes: `docs/data/public-sets.md`."""

import pathlib

from data_pipelines.image_folder.recipes import RECIPES, Recipe
from docs.results_tables import markdown_table

PATH = pathlib.Path(__file__).parent / "data" / "public-sets.md"
_HEAD = """# Public sets

Seven published sets are read by name, in the layout of their publishers. Download one yourself, under its licence:
nothing is downloaded here, and no image comes with the package.

```bash
histojax train --config image_folder:mhist --workdir runs/mhist --config.data.root=MHIST
histojax train --config image_folder:mhist,densenet121 --workdir runs/dense \\
    --config.data.root=MHIST
histojax train --config image_folder:mhist,smoke --workdir runs/smoke
```

The first trains ResNet50, the second a model of your choice, and the third tries the program on synthetic images.

**Before anything is stored, the images of each class are counted.** Other numbers than published are an error that
names both. To train on a part of a set, add `--config.data.images.part=true`: fewer images are then fine, more are not.

**No recipe was run on the real set.** The facts come from publishers' pages, from copies of them and from public code,
and the tests run on small sets that we wrote in the same layouts. If a real set differs, please report it.
"""


def page() -> str:
    """Return the text of the page."""
    head = ("name", "images", "classes", "licence", "split of `auto`", "run by us")
    rows = []
    for name, recipe in RECIPES.items():
        size = (f"{recipe.images:,}", str(len(recipe.classes)))
        rows.append((f"[`{name}`](#{name})", *size, recipe.licence, recipe.auto, _yes(recipe.ran)))
    lines = [_HEAD, *markdown_table(head, rows)]
    for name, recipe in RECIPES.items():
        lines += ["", f"## {name}", "", *_section(recipe)]
    return "\n".join(lines) + "\n"


def _section(recipe: Recipe) -> list[str]:
    """Return what is known of a set."""
    lines = [
        f"{recipe.title}.",
        "",
        f"* Licence: {recipe.licence}",
        f"* Published at {recipe.get}",
        f"* `data.root`: {recipe.layout}",
        f"* Split: {recipe.split}",
    ]
    if recipe.positive:
        lines.append(f"* Positive class: `{recipe.positive}`")
    if recipe.caveat:
        lines.append(f"* Results note: {recipe.caveat}")
    lines.append(f"* Run on the real set: {_yes(recipe.ran)}")
    parts = [*recipe.counts]
    head = ["class", *(part or "images" for part in parts)]
    rows = [[f"`{label}`", *(f"{recipe.counts[part].get(label, 0):,}" for part in parts)] for label in recipe.classes]
    return [*lines, "", *markdown_table(head, rows)]


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
