"""The `janus` command."""

import json
from pathlib import Path
from typing import Any

import click

from janus.common.options import DEVICE, FOLDER, MODE, Group, add_options
from janus.generate.command import Request
from janus.inspect.costs import Load


@click.group(cls=Group)
def main() -> None:
    """Use, inspect and convert Janus-Pro models; check this device against reference cases."""


@main.command()
@click.argument("model", metavar="DIR|HUB_ID")
@add_options(Request)
def generate(model: str, **options: Any) -> None:
    """Answer prompts, or draw pictures, with the weights of MODEL.

    \b
    janus generate MODEL --prompt "Does aspirin thin the blood?"
    janus generate MODEL --image scan.png --prompt "Is there a fracture?"
    janus generate MODEL --draw "a blue porcelain vase" --num-images 4
    janus generate MODEL --draw "Make it blue." --image vase.png
    janus generate MODEL --chat conversations.jsonl

    Answers go to standard output. Each picture is a PNG in OUT that records prompt, seed and model.
    """
    from janus.generate.command import run

    run(model, Request(**options))


@main.command()
@click.argument("model", metavar="DIR|PRESET|HUB_ID")
@add_options(Load)
@click.option(
    "--train-gen-embed/--no-train-gen-embed", default=True, help="Train the image embedding table too."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: str, train_gen_embed: bool, as_json: bool, **load: Any) -> None:
    """Describe MODEL and the memory that training each stage needs. Reads no weights."""
    from janus.checkpoint.folder import open_model
    from janus.inspect.costs import describe, lines

    description = describe(open_model(model), Load(**load), train_gen_embed)
    for line in [json.dumps(description)] if as_json else lines(description):
        click.echo(line)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--mode", type=MODE, default="graph", help="Compiled graphs, or op by op.")
@click.option("--device", type=DEVICE, default="auto", help="Where to compute.")
def verify(folder: Path, mode: str, device: str) -> None:
    """Compare this device's numbers with the reference cases in DIR.

    DIR holds cases.safetensors, cases.json and the weights in hf-format, deepseek-format or both. Prints the
    largest difference of each quantity with its tolerance; exits 1 if any exceeds it.
    """
    from janus.inspect.verify import verify as verify_cases

    failed = 0
    for layout, check in verify_cases(folder, mode, device):
        passed = check.difference <= check.tolerance  # NaN is not
        failed += not passed
        figures = f"{check.difference:9.2e}  (at most {check.tolerance:.0e})"
        click.echo(f"{layout:16} {check.name:60} {figures}  {'ok' if passed else 'TOO FAR'}")
    click.echo(f"{failed} quantities beyond their tolerance" if failed else "all within tolerance")
    raise SystemExit(1 if failed else 0)


@main.command()
@click.argument("source", metavar="DIR|HUB_ID")
@click.argument("target", type=FOLDER, metavar="NEW_DIR")
@click.option("--layout", type=click.Choice(["transformers", "deepseek"]), required=True)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32", "as-is"]), default="as-is")
def convert(source: str, target: Path, layout: str, dtype: str) -> None:
    """Write the checkpoint SOURCE in another layout or dtype into NEW_DIR.

    Tensors that both layouts have are copied bit for bit, unless --dtype changes them. DeepSeek's attn_pool
    and codebook_used, which affect no output, are left out.
    """
    from janus.checkpoint.folder import convert as convert_model
    from janus.checkpoint.folder import open_model

    convert_model(open_model(source), target, layout, dtype)
    click.echo(f"{target}: {layout} layout, {dtype}")
