"""`janus`: look at, check and convert models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Janus-Pro models: look at them, convert them, check this device against reference cases."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--mode", type=click.Choice(["graph", "pynative"]), default="graph", show_default=True)
def verify(folder: Path, mode: str) -> None:
    """Compare this device's numbers with the reference cases in DIR.

    DIR holds cases.safetensors, cases.json and the weights in hf-format and deepseek-format (one of them is
    enough). Prints the largest difference of each quantity beside its tolerance; exits 1 if one is beyond.
    """
    from janus.inspect.verify import verify as verify_cases

    failed = 0
    for layout, check in verify_cases(folder, mode):
        mark = "ok" if check.passed else "TOO FAR"
        click.echo(
            f"{layout:16} {check.name:60} {check.difference:9.2e}  (at most {check.tolerance:.0e})  {mark}"
        )
        failed += not check.passed
    click.echo(f"{failed} quantities beyond their tolerance" if failed else "all within tolerance")
    sys.exit(1 if failed else 0)


@main.command()
@click.argument("model", metavar="DIR|PRESET|HUB_ID")
@click.option(
    "--rows", type=click.IntRange(min=1), default=1, show_default=True, help="Rows of a micro-batch."
)
@click.option(
    "--length", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens of a row."
)
@click.option(
    "--answer",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Supervised tokens of a text or vqa row.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of forward and backward.",
)
@click.option("--train-gen-embed/--no-train-gen-embed", default=True, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(
    model: str, rows: int, length: int, answer: int, dtype: str, train_gen_embed: bool, as_json: bool
) -> None:
    """Print what MODEL is, and the bytes that training each stage will need. Reads no weights."""
    from janus.checkpoint.folder import open_model
    from janus.inspect.info import describe, lines
    from janus.inspect.memory import Load

    description = describe(open_model(model), Load(rows, length, answer, dtype), train_gen_embed)
    for line in [json.dumps(description)] if as_json else lines(description):
        click.echo(line)


@main.command()
@click.argument("source", metavar="DIR|HUB_ID")
@click.argument("target", type=click.Path(path_type=Path), metavar="NEW_DIR")
@click.option("--layout", type=click.Choice(["transformers", "deepseek"]), required=True)
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float32", "as-is"]), default="as-is", show_default=True
)
def convert(source: str, target: Path, layout: str, dtype: str) -> None:
    """Write the checkpoint SOURCE in another layout or dtype into NEW_DIR.

    Every tensor that both layouts have stays as it is, bit for bit, unless a dtype is asked for. DeepSeek's
    attn_pool and codebook_used, which no output depends on, are left out.
    """
    from janus.checkpoint.convert import DTYPES
    from janus.checkpoint.convert import convert as convert_model
    from janus.checkpoint.folder import open_model

    convert_model(open_model(source), target, layout, DTYPES[dtype])
    click.echo(f"{target}: {layout} layout, {dtype}")


@main.command()
@click.argument("model", metavar="DIR|HUB_ID")
@click.option(
    "--prompt", "prompts", metavar="TEXT", multiple=True, help="Answer this; may be given several times."
)
@click.option(
    "--image",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture that the prompts ask about.",
)
@click.option(
    "--draw",
    "draws",
    metavar="TEXT",
    multiple=True,
    help="Draw pictures of this; may be given several times.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("pictures"),
    show_default=True,
    help="Where pictures go.",
)
@click.option(
    "--num-images",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Pictures to draw of each TEXT.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    show_default="0 for answers, 1 for pictures",
    help="0: always the likeliest token.",
)
@click.option(
    "--guidance",
    type=float,
    default=5.0,
    show_default=True,
    help="How much more than without a prompt a picture follows it (classifier-free guidance).",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer; pictures have always as many as the model has for one.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decides every draw, with the number of picture or prompt.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="At most so many answers or pictures at a time.",
)
def generate(model: str, **options: Any) -> None:
    """Answer prompts, or draw pictures, with the weights of MODEL.

    \b
    janus generate MODEL --prompt "Does aspirin thin the blood?"
    janus generate MODEL --image scan.png --prompt "Is there a fracture?"
    janus generate MODEL --draw "a blue porcelain vase" --num-images 4

    Answers go to the standard output. Each picture goes to OUT as a PNG that holds prompt, seed and model.
    """
    from janus.generate.command import Request, run

    run(model, Request(**options))
