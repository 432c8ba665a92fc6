"""The models that are served here, by all that a request may call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from models.catalogue import UnknownModel
from models.text.model import Kind
from serving.errors import NoSuchModel
from serving.runners import ServedModel, ServedText


@dataclass(frozen=True)
class Lineup:
    """Of one deployment.

    proteins: by their catalogue names. texts: by the deployment's own names. wanted: the deployment's choices for
    whom names none.
    """

    proteins: Mapping[str, ServedModel]
    texts: Mapping[str, ServedText] = field(default_factory=dict)
    wanted: Mapping[Kind, str | None] = field(default_factory=dict)

    @property
    def default_protein(self) -> str:
        """The first protein model.

        Raises:
            NoSuchModel: there is none.
        """
        if not self.proteins:
            raise NoSuchModel("no protein model is served here; MODELS names those that are")
        return next(iter(self.proteins))

    @cached_property
    def by_name(self) -> dict[str, ServedModel]:
        """The protein models, by all that a request may call them: their names, and name:version."""
        versions = {f"{one.model.base_name}:{one.version}": one for one in self.proteins.values()}
        return {**versions, **self.proteins}

    def find(self, name: str) -> ServedModel:
        """The served model of exactly this name, or of this name and version.

        Raises:
            UnknownModel: it is not served here, with the names that come near.
        """
        if name not in self.by_name:
            raise UnknownModel(name, list(self.proteins))
        return self.by_name[name]

    @property
    def default_embedder(self) -> str | None:
        """The model of embeddings for whom names none: the deployment's choice, else texts before proteins.

        None where none is served.
        """
        wanted = self.wanted.get("embedding")
        return wanted or next(iter([*self.names_of("embedding"), *self.proteins]), None)

    def default_text(self, kind: Kind) -> str:
        """The model of a kind for whom names none.

        Raises:
            NoSuchModel: there is none.
        """
        wanted = self.wanted.get(kind)
        names = self.names_of(kind)
        if wanted is None and not names:
            raise NoSuchModel(f"no model for {kind} is served here; TEXT_MODELS names those that are")
        return wanted or names[0]

    def find_text(self, name: str, kind: Kind) -> ServedText:
        """The served text model of exactly this name.

        Raises:
            UnknownModel: it is not served here, or is of another kind.
        """
        if name in self.texts and self.texts[name].model.kind == kind:
            return self.texts[name]
        known = self.names_of(kind) + (list(self.proteins) if kind == "embedding" else [])
        raise UnknownModel(name, known)

    def find_any(self, name: str) -> ServedModel | ServedText:
        """The served model of exactly this name, whatever it is for.

        Raises:
            UnknownModel: it is not served here.
        """
        if name in self.texts:
            return self.texts[name]
        try:
            return self.find(name)
        except UnknownModel:
            raise UnknownModel(name, [*self.proteins, *self.texts]) from None

    def names_of(self, kind: Kind) -> list[str]:
        """Of the text models of a kind."""
        return [name for name, served in self.texts.items() if served.model.kind == kind]

    @property
    def all(self) -> list[ServedModel | ServedText]:
        """Proteins' first."""
        return [*self.proteins.values(), *self.texts.values()]
