"""What requests and answers look like, as pydantic models: the source of the OpenAPI schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

Id64 = Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)]
Ids = list[Id64] | list[StrictStr]
Number = Annotated[float, Field(allow_inf_nan=False)]
Mode = Literal["sparse", "reconstructed", "dense"]


class _Strict(BaseModel):
    # an unknown name is a misspelt one: ignoring it would answer another question
    model_config = ConfigDict(extra="forbid")


class Codes(_Strict):
    """Queries as sparse codes."""

    latents: list[list[Annotated[StrictInt, Field(ge=0, le=2**32 - 1)]]] = Field(
        description="Of each query, the latents of its nonzeros."
    )
    values: list[list[Number]] = Field(description="Of each query, their values.")


class ApproximateSetting(_Strict):
    """How far an approximate search looks."""

    clusters: Annotated[int, Field(ge=1, le=2**31 - 1)]
    rerank: Annotated[int, Field(ge=1, le=2**31 - 1)]


class SearchRequest(_Strict):
    """A search for the best items of each query: `queries` or `codes`, not both."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"queries": [[0.1, -0.2, 0.3]], "k": 10}]},
    )

    queries: list[list[Number]] | None = Field(
        None, description="Embeddings, one list a query, as wide as the index's dictionary."
    )
    codes: Codes | None = None
    k: Annotated[int, Field(ge=1)] = Field(10, description="Items to return a query.")
    mode: Mode | None = Field(None, description="Way of asking; by default the index's own.")
    k_row: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Read only this many nonzeros of each row."
    )
    filter: Ids | None = Field(None, description="Ids of the only items that may be returned.")
    exclude: list[Ids] | None = Field(
        None, description="For each query the ids that it may not return."
    )
    approximate: bool | ApproximateSetting = Field(
        False, description="Look at the nearest clusters only."
    )

    @model_validator(mode="after")
    def _one_kind_of_query(self) -> SearchRequest:
        if (self.queries is None) == (self.codes is None):
            raise ValueError("give either `queries` or `codes`")
        return self


class Found(BaseModel):
    """The best items of one query, best first; fewer than k where there are no more."""

    ids: list[int] | list[str]
    scores: list[float]
    names: list[str | None] | None = None


class SearchResponse(BaseModel):
    """The answer to a search, all of it from one version of the file."""

    results: list[Found]
    generation: int = Field(description="Counts the versions of the file since the start.")


class Health(BaseModel):
    """How the service is."""

    status: Literal["ok", "stale"] = Field(
        description="`stale`: the newest file could not be opened, the one before is served."
    )
    version: str
    items: int
    generation: int
    error: str | None = None


class Reloaded(BaseModel):
    """What a look at the file gave."""

    reloaded: bool
    generation: int
    items: int


class Info(BaseModel):
    """What the index is: `SparseIndex.stats()`, and the limits of the service."""

    index: dict[str, Any]
    limits: dict[str, int]
    generation: int


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
