"""A proposal as a sweep file, with comments that say why each value is as it is."""

from __future__ import annotations

import textwrap

from sweeps.proposal import MOST_EPOCHS, Design
from sweeps.toml import as_toml, table_lines

#: Width of a line of the file.
_WIDTH = 118


def text_of(design: Design, head: list[str]) -> str:
    """The text of the sweep file; `head` are the sentences of its first comment."""
    lines, document = [line for sentence in head for line in _comment(sentence)], design.document
    lines += ["", f"title = {as_toml(document['title'])}"]
    for name, value in document.items():
        if name == "title":
            continue
        lines += ["", *_comment(_why(design)[name])]
        for table in value if isinstance(value, list) else [value]:
            lines += [f"[[{name}]]" if isinstance(value, list) else f"[{name}]", *table_lines(table)]
    return "\n".join(lines) + "\n"


def _comment(sentence: str) -> list[str]:
    wrapped = textwrap.wrap(sentence, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in wrapped]


def _why(design: Design) -> dict[str, str]:
    """What the comment above each table says."""
    facts, epochs = design.facts, design.steps * design.batch_size / design.facts.images
    seeds = "two seeds show how much of a difference is chance" if design.seeds > 1 else "one seed: the time is short"
    what = "The models learn latents of an autoencoder" if design.on_latents else "The models learn pixels"
    classes = "the classes are learned, too" if facts.labelled else "no classes are learned"
    alike = ", and drawn with classes as frequent as there" if facts.labelled else ""
    return {
        "grid": f"The models: every shape at every patch size. Half the patch size is four times the tokens; {seeds}.",
        "data": (
            f"{what}; {classes}. The fingerprint is that of the folder's content: change a file, and this is other "
            "data. horizontal_flips = true mirrors half of the images: for what has no left and right."
        ),
        "training": (
            f"Every image is seen about {epochs:.3g} times (at most {MOST_EPOCHS} are proposed). The rate falls with "
            "the width; `dit-harness pilot` finds the best one for your images. A longer training: more steps."
        ),
        "evaluation": (
            f"Samples are compared with the images to learn from{alike}. Their number is at most half of those images, "
            "so that frechet_floor says what real images score. `launch` trains the extractor on the folder, once; its "
            f"distance is FD-{facts.name}, and no FID."
        ),
        "exclude": "Left out: widths that do not carry the noise of a patch, which has size * size * channels values.",
        "resources": "Where the images are. This is no part of the cells' ids.",
    }
