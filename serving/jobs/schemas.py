"""JSON bodies of jobs as types. Names and shapes are the public interface; see docs/api.md."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving import examples
from serving.schemas import ComputeOptions


class JobOptions(ComputeOptions):
    """What a job can ask for."""

    format: Literal["npz", "h5", "parquet"] = Field(
        "npz", description="of the result: npz, HDF5 as UniProt's files of embeddings, Parquet (pooled alone)"
    )


class JobQuery(JobOptions):
    """The options of a job's submission."""

    model: str | None = Field(None, description="name of a served model; default: the first of them")


class JobError(BaseModel):
    """What is wrong with one sequence of a job."""

    index: int
    id: str | None = None
    reason: str


JobState = Literal["queued", "running", "done", "failed", "cancelled"]


class JobSubmitted(BaseModel):
    """Reply to a submission."""

    model_config = ConfigDict(json_schema_extra={"example": examples.JOB_SUBMITTED})

    job_id: str
    status: JobState
    status_link: str
    num_sequences: int
    num_residues: int = Field(description="of what can be embedded")
    num_invalid: int = Field(0, description="sequences that cannot be embedded; they do not stop the others")
    num_truncated: int = 0
    invalid: list[JobError] = Field([], description="the first hundred of them")


class JobProgress(BaseModel):
    """How far a job is. Rate and time are those of the worker that has it now."""

    sequences: int = Field(description="that are done with, failed ones included")
    total_sequences: int
    residues: int
    total_residues: int
    cached_share: float = Field(description="of the sequences that are done with")
    failed: int
    residues_per_s: float | None
    eta_s: float | None


class JobStatus(BaseModel):
    """A job as it is now."""

    model_config = ConfigDict(json_schema_extra={"example": examples.JOB_STATUS})

    job_id: str
    status: JobState
    model: str
    tag: str
    options: JobOptions
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: JobProgress
    errors: list[JobError] = Field(description="of the first hundred sequences that failed")
    reason: str | None = Field(description="why it failed, or what it is waiting for")
    download_link: str | None
    size_bytes: int | None
    is_expired: bool = Field(description="it was done, and its result is deleted")


class JobList(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": examples.JOB_LIST})

    total: int
    jobs: list[JobStatus] = Field(description="without their errors")
