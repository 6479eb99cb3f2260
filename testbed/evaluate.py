"""What the embedded model can do, beside what the grammar allows: `python -m testbed.evaluate`."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from testbed.data import token_ids, token_logprobs
from testbed.grammar import LABELS, documents
from testbed.pairs import STRUCTURES, agreement_pairs
from testbed.tokenizer import build_tokenizer

MODEL = Path(__file__).parent / "model"
HELD_OUT_SEED = 1_000_003
N_DOCUMENTS = 500
N_PAIRS = 500
BATCH = 50


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The model on the tokens of one label: how many, top-1 accuracy, loss and entropy in nats."""

    n: int
    accuracy: float
    loss: float
    entropy: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The model beside the grammar, in nats per token.

    Attributes:
        loss: the model's cross-entropy on held-out documents.
        entropy: the grammar's on the same tokens, exact for each token; a Monte-Carlo estimate of
            the grammar's entropy that no model can beat but by chance.
        behaviours: by label.
        agreement: by structure, the fraction of test pairs whose right answer has the greater
            logit, in both prefixes of each pair.
    """

    loss: float
    entropy: float
    behaviours: dict[str, Behaviour]
    agreement: dict[str, float]


def load_model(folder: Path = MODEL) -> PreTrainedModel:
    """The embedded model, in float32 whatever it was rounded to on disk."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def evaluate(
    model: PreTrainedModel, n_documents: int = N_DOCUMENTS, n_pairs: int = N_PAIRS
) -> Evaluation:
    """Loss and accuracy on documents no training run of seed 0 has seen, and on agreement pairs."""
    held_out = list(documents(n_documents, HELD_OUT_SEED))
    ids = token_ids(held_out)
    target = ids[:, 1:]
    counts = target >= 0
    loss, right = _losses(model, ids)
    entropy = -token_logprobs(held_out)[:, 1:]
    label = torch.full(ids.shape, -1)
    for row, document in enumerate(held_out):
        of_tokens = [LABELS.index(one) for one in document.labels[: ids.shape[1]]]
        label[row, : len(of_tokens)] = torch.tensor(of_tokens)
    behaviours = {}
    for index, name in enumerate(LABELS):
        chosen = label[:, 1:] == index
        if chosen.any():
            means = (one[chosen].double().mean().item() for one in (right, loss, entropy))
            behaviours[name] = Behaviour(int(chosen.sum()), *means)
    return Evaluation(
        loss=loss[counts].mean().item(),
        entropy=entropy[counts].mean().item(),
        behaviours=behaviours,
        agreement={name: agreement_accuracy(model, name, n_pairs) for name in STRUCTURES},
    )


def _losses(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token but the first, and whether it was the likeliest."""
    losses, rights = [], []
    for batch in ids.split(BATCH):
        logits = model(input_ids=batch.clamp(min=0), use_cache=False).logits[:, :-1]
        target = batch[:, 1:].clamp(min=0)
        logprobs = logits.log_softmax(-1)
        losses.append(-logprobs.gather(-1, target[..., None])[..., 0])
        rights.append(logits.argmax(-1) == target)
    return torch.cat(losses), torch.cat(rights)


@torch.inference_mode()
def agreement_accuracy(model: PreTrainedModel, structure: str, n_pairs: int) -> float:
    """The fraction of test-split prefixes at which the right form has the greater logit."""
    pairs = agreement_pairs(structure, n_pairs, "test", HELD_OUT_SEED)
    ids, answers = (
        torch.tensor(build_tokenizer()([pair[key] for pair in pairs for key in keys])["input_ids"])
        for keys in (("clean_prefix", "patch_prefix"), ("clean_answer", "patch_answer"))
    )
    logits = model(input_ids=ids).logits[:, -1].unflatten(0, (-1, 2))
    # (pair, which prefix, which answer): each prefix has its own answer right.
    chosen = logits.gather(-1, answers.view(-1, 1, 2).expand(-1, 2, 2))
    return (chosen.argmax(-1) == torch.tensor([0, 1])).double().mean().item()


def report(found: Evaluation) -> str:
    """The evaluation as Markdown."""
    lines = [
        f"Loss {found.loss:.4f} nats per token; the grammar's entropy on the same tokens "
        f"{found.entropy:.4f}; {found.loss / found.entropy - 1:+.2%}.",
        "",
        "| agreement, test nouns | right |",
        "|---|---|",
        *(f"| {name} | {share:.1%} |" for name, share in found.agreement.items()),
        "",
        "| label | tokens | top-1 | loss | entropy |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.behaviours.items():
        lines.append(
            f"| {name} | {row.n} | {row.accuracy:.1%} | {row.loss:.3f} | {row.entropy:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--documents", type=int, default=N_DOCUMENTS, help="held-out documents")
    arguments = parser.parse_args()
    print(report(evaluate(load_model(arguments.model), arguments.documents)))


if __name__ == "__main__":
    main()
