"""The table of models: one row describes everything that the service must know of one.

To add a model of a known family, add a row. No torch here: the gateway reads this table too.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Family = Literal["esm2", "t5"]

STANDARD_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
NON_STANDARD_RESIDUES = "UZOBX"

# Source: facebook/esm2_t6_8M_UR50D, vocab.txt; the order is fair-esm's Alphabet "ESM-1b"
ESM2_VOCABULARY = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
# Source: Rostlab/prot_t5_xl_half_uniref50-enc, spiece.model; ids 0 to 27, without the mark of a word's start
PROT_T5_VOCABULARY = ("<pad>", "</s>", "<unk>", *"ALGVSREDTIPKFQNYMHWCXBOUZ")
_VOCABULARIES: Mapping[Family, tuple[str, ...]] = {"esm2": ESM2_VOCABULARY, "t5": PROT_T5_VOCABULARY}


class UnknownModel(LookupError):
    """A name that no row of the table has, or that this deployment does not run."""

    def __init__(self, name: str, known: list[str]) -> None:
        self.name = name
        self.known = known
        self.near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(self.near)}?" if self.near else f"known: {', '.join(known)}"
        super().__init__(f"unknown model {name!r}; {hint}")


@dataclass(frozen=True)
class Model:
    """One row.

    `dim` is the width of an embedding, `feed_forward_dim` that of the hidden layer of a block.
    `source` is the Hugging Face repository of the weights; None where they are made on the spot.
    `num_specials` counts the tokens that the family adds at the start and the end of a sequence.
    `trained_length` is that of the longest sequences of its training, in residues; it takes longer ones.
    `replaced_residues` maps the letters that the model was not trained on to what it reads instead.
    """

    name: str
    family: Family
    num_layers: int
    dim: int
    num_heads: int
    head_dim: int
    feed_forward_dim: int
    description: str
    trained_length: int | None
    source: str | None = None
    num_specials: tuple[int, int] = (1, 1)
    replaced_residues: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def base_name(self) -> str:
        """Name in the table. Where versions of a model are served side by side, `name` of all but one has more."""
        return self.name.partition(":")[0]

    @property
    def store_name(self) -> str:
        """Name in the BentoML model store, which knows lower case only."""
        return self.base_name.lower()

    @property
    def runner(self) -> str:
        """Name of the BentoML service that runs this model."""
        return "runner_" + re.sub(r"\W", "_", self.name)

    @property
    def alphabet(self) -> frozenset[str]:
        """Letters that a sequence may hold."""
        return frozenset(STANDARD_RESIDUES + NON_STANDARD_RESIDUES)

    def read_as(self, sequence: str) -> str:
        """The sequence as the model reads it, `replaced_residues` applied."""
        if not self.replaced_residues:
            return sequence
        return sequence.translate({ord(a): b for a, b in self.replaced_residues.items()})

    def spell(self, ids: Sequence[int]) -> str:
        """The sequence that the model's tokenizer makes these ids of; special ones at its ends are left out.

        Raises:
            ValueError: an id stands for no residue, with its place from 0.
        """
        vocabulary = _VOCABULARIES[self.family]
        names = [vocabulary[id] if 0 <= id < len(vocabulary) else "?" for id in ids]
        first = 1 if names[:1] == ["<cls>"] else 0
        last = len(names) - (names[-1:] in (["<eos>"], ["</s>"]))
        for place in range(first, last):
            if names[place] not in self.alphabet:
                raise ValueError(f"token id {ids[place]} at place {place} is no residue of {self.name}")
        return "".join(names[first:last])


def _esm2(name: str, num_layers: int, dim: int, num_heads: int, size: str) -> Model:
    """A row of the ESM-2 family. Source of the sizes: fair-esm, README, table of pre-trained models."""
    return Model(
        name=name,
        family="esm2",
        num_layers=num_layers,
        dim=dim,
        num_heads=num_heads,
        head_dim=dim // num_heads,
        feed_forward_dim=4 * dim,
        trained_length=1022,  # 1024 tokens; fair-esm's scripts/extract.py cuts there by default
        source=f"facebook/{name}_UR50D",
        description=f"ESM-2 protein language model ({size} parameters), UniRef50",
    )


MINI = Model(
    name="esm2_mini",
    family="esm2",
    num_layers=4,
    dim=144,
    num_heads=6,
    head_dim=24,
    feed_forward_dim=4 * 144,
    description="ESM-2's architecture (1M parameters), seeded and UNTRAINED: for wiring, tests and trials only",
    trained_length=None,
)

# ProtTrans README: "replace all rare/ambiguous amino acids by X" with re.sub(r"[UZOB]", "X", s)
_PROT_T5_REPLACED = {"U": "X", "Z": "X", "O": "X", "B": "X"}

MINI_T5 = Model(
    name="prot_t5_mini",
    family="t5",
    num_layers=2,
    dim=64,
    num_heads=4,
    head_dim=16,
    feed_forward_dim=256,
    description="ProtT5's architecture (0.1M parameters), seeded and UNTRAINED: for wiring, tests and trials only",
    trained_length=None,
    num_specials=(0, 1),
    replaced_residues=_PROT_T5_REPLACED,
)

CATALOGUE: Mapping[str, Model] = {
    model.name: model
    for model in (
        MINI,
        _esm2("esm2_t6_8M", 6, 320, 20, "8M"),
        _esm2("esm2_t12_35M", 12, 480, 20, "35M"),
        _esm2("esm2_t30_150M", 30, 640, 20, "150M"),
        _esm2("esm2_t33_650M", 33, 1280, 20, "650M"),
        _esm2("esm2_t36_3B", 36, 2560, 40, "3B"),
        _esm2("esm2_t48_15B", 48, 5120, 40, "15B"),
        Model(
            name="prot_t5",
            family="t5",
            num_layers=24,
            dim=1024,
            num_heads=32,
            head_dim=128,
            feed_forward_dim=16384,
            source="Rostlab/prot_t5_xl_half_uniref50-enc",
            description="ProtT5-XL encoder (1.2B parameters), BFD and UniRef50",
            trained_length=511,  # 512 tokens, the end token among them: Elnaggar et al. 2021, section 2.2
            num_specials=(0, 1),
            replaced_residues=_PROT_T5_REPLACED,
        ),
        MINI_T5,
    )
}


def find(name: str) -> Model:
    """The row of exactly this name.

    Raises:
        UnknownModel: with the names that come near.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownModel(name, list(CATALOGUE)) from None


def find_served(name: str) -> Model:
    """The row behind a name under which a model is served: its own, or for a further version `name:version`."""
    return dataclasses.replace(find(name.partition(":")[0]), name=name)
