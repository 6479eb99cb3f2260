"""Train the embedded model from a seed: `python -m testbed.train` (minutes on two cores)."""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from testbed.data import IGNORED, N_POSITIONS, token_ids
from testbed.evaluate import (
    HELD_OUT_SEED,
    MODEL,
    N_DOCUMENTS,
    N_PAIRS,
    Evaluation,
    evaluate,
    load_model,
    report,
)
from testbed.grammar import documents
from testbed.tokenizer import END_OF_TEXT, save_tokenizer, vocabulary

SEED = 0
N_STEPS = 3000
BATCH = 16
LEARNING_RATE = 4e-3
N_WARM_UP = 100
DECAY_FROM = 0.4  # of the steps, at full rate before
N_THREADS = 2

log = logging.getLogger(__name__)


def new_model() -> GPTNeoXForCausalLM:
    """An untrained GPT-NeoX: parallel residual, rotary, untied, about 1.2 million parameters."""
    words = vocabulary()
    end = words.index(END_OF_TEXT)
    config = GPTNeoXConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=256,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return GPTNeoXForCausalLM(config)


def batches(n_steps: int, seed: int) -> Iterator[Tensor]:
    """Batches of documents never seen before, ``(document, pos)``."""
    stream = documents(n_steps * BATCH, seed)
    for _ in range(n_steps):
        yield token_ids(next(stream) for _ in range(BATCH))


def train(n_steps: int, seed: int, n_threads: int = N_THREADS) -> GPTNeoXForCausalLM:
    """Minimise cross-entropy on the first 128 tokens of each document, on the CPU."""
    torch.set_num_threads(n_threads)
    torch.manual_seed(seed)
    model = new_model()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, n_steps))
    for step, ids in enumerate(batches(n_steps, seed)):
        # Padding comes last, so that no token that counts attends to it.
        logits = model(input_ids=ids.clamp(min=0), use_cache=False).logits
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            log.info("step %5d of %d  loss %.3f nats per token", step, n_steps, loss.item())
    return model.eval()


def rate(step: int, n_steps: int) -> float:
    """Learning rate as a fraction of its peak: up, level, then down to zero."""
    falling = (n_steps - step) / (n_steps * (1 - DECAY_FROM))
    return min(1.0, (step + 1) / N_WARM_UP, falling)


def save(model: GPTNeoXForCausalLM, folder: Path) -> None:
    """Write weights and tokenizer as `save_pretrained` does.

    The weights are rounded to float16; config.json still says float32, the type to load them in.
    """
    rounded = {name: weight.half() for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=rounded)
    save_tokenizer(folder)


CARD = """\
---
library_name: transformers
license: mit
---
# The test bed's model

A GPT-NeoX ({n_parameters:,} parameters: 4 layers, width 128, 4 heads, parallel residual, rotary,
untied embeddings) trained on nothing but the documents of `testbed/grammar.py`, whose every token
is labelled with the behaviour that determines it. It speaks no English beyond that grammar.

    python -m testbed.train      # again from seed {seed}; it took {minutes:.0f} minutes with {n_threads} thread(s)
    python -m testbed.evaluate   # the figures below

{n_steps:,} steps of {batch} documents, the first {n_positions} tokens of each, none seen twice;
AdamW, learning rate {rate:g}, level for two fifths of the steps and then falling to zero. The
weights are rounded to float16 and were measured after that, on {n_documents} held-out documents
(seed {held_out}) and {n_pairs} agreement pairs of each structure.

The grammar gives each token its exact probability, so that its entropy is the loss of a perfect
model. "Agreement" counts the prefixes of the test pairs at which the right form of the verb has the
greater logit; the label table counts, on every token with that label, whether it was the likeliest.

{report}
"""  # noqa: E501


def card(
    model: GPTNeoXForCausalLM, found: Evaluation, seconds: float, settings: argparse.Namespace
) -> str:
    """The README.md that goes with the weights."""
    return CARD.format(
        n_parameters=model.num_parameters(),
        seed=settings.seed,
        minutes=seconds / 60,
        n_threads=settings.threads,
        n_steps=settings.steps,
        batch=BATCH,
        n_positions=N_POSITIONS,
        rate=LEARNING_RATE,
        n_documents=N_DOCUMENTS,
        held_out=HELD_OUT_SEED,
        n_pairs=N_PAIRS,
        report=report(found),
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL, help="folder to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=N_STEPS)
    parser.add_argument("--threads", type=int, default=N_THREADS, help="fewer on a busy machine")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.monotonic()
    trained = train(arguments.steps, arguments.seed, arguments.threads)
    seconds = time.monotonic() - start
    save(trained, arguments.out)
    found = evaluate(load_model(arguments.out))
    (arguments.out / "README.md").write_text(
        card(trained, found, seconds, arguments), encoding="utf-8"
    )
    log.info("%s", report(found))


if __name__ == "__main__":
    main()
