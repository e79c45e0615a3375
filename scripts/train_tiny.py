"""Make pelton-tiny, the small model that ships in the package, from the running Python's standard library.

    python scripts/train_tiny.py data        collect, filter and split the sources; write the held-out text
    python scripts/train_tiny.py tokenizer   train the tokenizer; write the token arrays
    python scripts/train_tiny.py train       train within a time budget, keep the best checkpoint (a GPU helps)
    python scripts/train_tiny.py export      write the Hugging Face checkpoint directory and its model card

Needs torch, numpy, safetensors and tokenizers; `export` also compares logits with transformers.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path

BEGIN = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT_DIR = ROOT / "src" / "pelton" / "models_data" / "pelton-tiny"


def data_command(args: argparse.Namespace) -> None:
    """Write OUT/corpus.jsonl.gz, and the held-out text and the list of sources into the repository's data folder."""
    from tiny import corpus
    from tiny.export import write_text

    files, dropped = corpus.collect(corpus.stdlib_dir())
    args.corpus.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(args.corpus, "wt", encoding="utf-8") as out:
        for file in files:
            out.write(json.dumps({"path": file.path, "split": file.split, "text": file.text}) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "split", "licence", "bytes", "sha256"])
    for file in files:
        writer.writerow([file.path, file.split, file.licence, file.num_bytes, file.sha256[:16]])
    args.data_dir.mkdir(parents=True, exist_ok=True)
    write_text(args.data_dir / "tiny-sources.csv", table.getvalue())
    heldout = [file.text.strip("\n") for file in files if file.split == "heldout"]
    write_text(args.data_dir / "heldout-python.txt", "\n\n\n".join(heldout) + "\n")
    num_bytes = Counter()
    for file in files:
        num_bytes[file.split] += file.num_bytes
    summary = {"python": platform.python_version(), "bytes": num_bytes, "files": len(files), "dropped": dropped}
    print(json.dumps(summary))


def tokenizer_command(args: argparse.Namespace) -> None:
    """Write tokenizer.json, train.npz, eval.npz and summary.json into the token folder."""
    import numpy as np
    from tiny import tokens
    from tiny.export import write_text

    texts: dict[str, list[str]] = {"train": [], "valid": [], "heldout": []}
    with gzip.open(args.corpus, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            texts[row["split"]].append(row["text"])
    tokenizer = tokens.train_tokenizer(texts["train"])
    args.data.mkdir(parents=True, exist_ok=True)
    write_text(args.data / "tokenizer.json", tokenizer.to_str() + "\n")
    stream = tokens.encode_documents(tokenizer, texts["train"])
    framed, framed_starts = tokens.encode_framed(tokenizer, texts["train"], seed=1)
    np.savez_compressed(args.data / "train.npz", stream=stream, framed=framed, framed_starts=framed_starts)
    heldout_text = (args.data_dir / "heldout-python.txt").read_text(encoding="utf-8")
    heldout = np.asarray(tokenizer.encode(heldout_text, add_special_tokens=False).ids, dtype=np.uint16)
    valid = tokens.encode_documents(tokenizer, texts["valid"])[1:]
    valid_bytes = sum(len(text.encode()) for text in texts["valid"])
    heldout_bytes = len(heldout_text.encode())
    np.savez_compressed(
        args.data / "eval.npz", valid=valid, heldout=heldout, valid_bytes=valid_bytes, heldout_bytes=heldout_bytes
    )
    summary = {
        "python": platform.python_version(),
        "num_files": {split: len(rows) for split, rows in texts.items()},
        "num_bytes": {split: sum(len(text.encode()) for text in rows) for split, rows in texts.items()},
        "num_tokens": {"stream": len(stream), "framed": len(framed), "valid": len(valid), "heldout": len(heldout)},
        "num_framed_samples": len(framed_starts),
        "heldout_bytes_per_token": round(heldout_bytes / len(heldout), 4),
    }
    write_text(args.data / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


def train_command(args: argparse.Namespace) -> None:
    """Run each setting for its share of the time; leave the best checkpoint's shards, metrics.json and log.jsonl."""
    import torch
    from tiny import training
    from tiny.model import TinyConfig, TinyLlama

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    data = training.TokenData.load(args.data, device)
    config = TinyConfig()
    keeper = training.BestKeeper(args.out)
    deadline = BEGIN + 60 * args.minutes
    records: list[training.RunRecord] = []
    metrics: dict[str, object] = {
        "model": config.to_dict() | {"num_parameters": TinyLlama(config).num_parameters()},
        "data": json.loads((args.data / "summary.json").read_text(encoding="utf-8")),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "command": " ".join(sys.argv[1:]),
    }
    for index, (dropout, weight_decay) in enumerate(args.settings):
        settings = training.Settings(
            dropout=dropout,
            weight_decay=weight_decay,
            peak_lr=args.lr,
            batch_rows=args.batch_rows,
            window_tokens=args.window_tokens,
            num_evals=args.evals,
            compile=not args.no_compile,
        )
        records.append(
            training.train_run(
                data,
                config,
                settings,
                seconds=(deadline - time.monotonic()) / (len(args.settings) - index),
                max_steps=args.steps,
                on_best=lambda model, step, loss, i=index: keeper.offer(model, step, loss, run_index=i),
                log=lambda line, i=index: training.append_line(args.out / "log.jsonl", {"run": i} | line),
            )
        )
        best = keeper.run_index
        keeper.write_metrics(metrics | {"best_run": best, "runs": [vars(record) for record in records]})
    print(f"best: run {keeper.run_index}, validation loss {keeper.best_loss:.4f}, {time.monotonic() - BEGIN:.0f} s")


def export_command(args: argparse.Namespace) -> None:
    """Join the shards, measure them on the held-out text, compare with transformers, write the directory."""
    import torch
    from tiny import card, export, training
    from tiny.model import TinyConfig, TinyLlama
    from tokenizers import Tokenizer

    torch.set_num_threads(args.threads or 2)
    state, step = export.load_shards(args.trained)
    metrics = json.loads((args.trained / "metrics.json").read_text(encoding="utf-8"))
    config = TinyConfig()
    model = TinyLlama(config).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    data = training.TokenData.load(args.data, torch.device("cpu"))
    results = {}
    for split, num_bytes in (("valid", data.valid_bytes), ("heldout", data.heldout_bytes)):
        stream = getattr(data, split)
        nats = training.evaluate(model, stream, window_tokens=config.max_position_embeddings, rows=4)
        results[split] = training.measures(nats, stream.numel(), num_bytes)
        print(split, json.dumps(results[split]), flush=True)
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer.json"))
    text = card.model_card(config, metrics, results, best_step=step, sources=args.data_dir / "tiny-sources.csv")
    export.write_checkpoint(args.output, config, state, tokenizer, text)
    print(f"largest logit difference to transformers, relative: {export.transformers_difference(args.output, model)}")


def _settings(text: str) -> list[tuple[float, float]]:
    return [(float(dropout), float(decay)) for dropout, decay in (pair.split(":") for pair in text.split(","))]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    paths = argparse.ArgumentParser(add_help=False)
    paths.add_argument("--corpus", type=Path, default=ROOT / "out/tiny/corpus.jsonl.gz", help="filtered sources")
    paths.add_argument("--data", type=Path, default=ROOT / "out/tiny/tokens", help="folder of tokenizer and arrays")
    paths.add_argument("--data-dir", type=Path, default=ROOT / "data", help="the repository's data folder")
    paths.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    commands.add_parser("data", parents=[paths], help=data_command.__doc__).set_defaults(run=data_command)
    commands.add_parser("tokenizer", parents=[paths], help=tokenizer_command.__doc__).set_defaults(
        run=tokenizer_command
    )
    train = commands.add_parser("train", parents=[paths], help=train_command.__doc__)
    train.add_argument("--out", type=Path, default=ROOT / "out/tiny/trained", help="folder of the result")
    train.add_argument("--minutes", type=float, default=8.0, help="wall time for everything, start-up included")
    train.add_argument("--steps", type=int, default=None, help="exactly this many steps a run, whatever the time")
    train.add_argument("--settings", type=_settings, default="0.1:0.5", help="dropout:weight_decay of each run")
    train.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    train.add_argument("--batch-rows", type=int, default=64, help="rows a step")
    train.add_argument("--window-tokens", type=int, default=2048, help="tokens a row")
    train.add_argument("--evals", type=int, default=30, help="validation measurements a run")
    train.add_argument("--no-compile", action="store_true", help="train eagerly")
    train.set_defaults(run=train_command)
    export = commands.add_parser("export", parents=[paths], help=export_command.__doc__)
    export.add_argument("--trained", type=Path, default=ROOT / "out/tiny/trained", help="folder that train wrote")
    export.add_argument("--output", type=Path, default=CHECKPOINT_DIR, help="checkpoint directory to write")
    export.set_defaults(run=export_command)
    return parser


if __name__ == "__main__":
    arguments = build_parser().parse_args()
    arguments.run(arguments)
