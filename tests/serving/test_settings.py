"""Settings: defaults, bounds, and a start that stops with the variable's name."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from scripts.local_service import ROOT
from serving import settings
from serving.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_defaults_of_the_triton_based_service_are_kept() -> None:
    found = load_settings()
    assert (found.min_sequence_length, found.max_sequence_length) == (10, 5000)
    assert found.max_sequences_per_request == 100
    assert (found.redis_ttl_days, found.redis_compression_level) == (30, 6)
    assert found.download_ttl_minutes == 10
    assert found.log_level == "INFO"
    assert found.models == ("esm2_mini",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELS", "esm2_mini,esm2_huge"),
        ("MODELS", ","),
        ("MODELS", "esm2_mini:v2,esm2_mini:v2"),
        ("MAX_SEQUENCE_LENGTH", "5"),  # below MIN_SEQUENCE_LENGTH
        ("MAX_SEQUENCE_LENGTH", "many"),
        ("MIN_SEQUENCE_LENGTH", "0"),
        ("MAX_SEQUENCES_PER_REQUEST", "-1"),
        ("PRECISION", "int3"),
        ("REDIS_URL", "http://redis"),
        ("REDIS_URL", "redis://host:port"),
        ("MODELS", "esm2_mini:"),
        ("MODELS", "esm2_mini:a/b"),
        ("REDIS_COMPRESSION_LEVEL", "10"),
        ("REDIS_TTL_DAYS", "0"),
        ("DOWNLOAD_TTL_MINUTES", "-5"),
        ("LOG_LEVEL", "LOUD"),
        ("GATEWAY_WORKERS", "0"),
        ("BATCH_TOKENS", "1"),
        ("BATCH_QUEUE_ENABLED", "perhaps"),
        ("BATCH_QUEUE_MAX_SIZE", "0"),
        ("BATCH_QUEUE_MAX_WAIT_MS", "-1"),
        ("BATCH_QUEUE_MAX_WAIT_MS", "10001"),
        ("MAX_QUEUE_TOKENS", "63"),
        ("MAX_CONCURRENT_REQUESTS", "0"),
        ("MAX_BODY_MB", "0"),
        ("MAX_BODY_MB", "large"),
        ("LOG_FORMAT", "xml"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "file:///etc/passwd"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("SHUTDOWN_TIMEOUT_SECS", "-1"),
        ("LIVENESS_SILENCE_S", "9"),
        ("HEALTH_OPEN", "perhaps"),
        ("METRICS_OPEN", "2"),
        ("DOCS_OPEN", "ja"),
        ("REQUESTS_PER_MINUTE", "0"),
        ("TOKENS_PER_MINUTE", "-1"),
        ("CORS_ORIGINS", "lab.example.org"),
        ("CORS_ORIGINS", "https://lab.example.org/"),
        ("CORS_ORIGINS", "https://lab.example.org/page"),
        ("CORS_ORIGINS", "https://"),
        ("CORS_ORIGINS", "https://:8080"),
        ("CORS_ORIGINS", "https://*.example.org"),
        ("CORS_ORIGINS", "https://Lab.example.org"),
        ("CORS_ORIGINS", "HTTPS://lab.example.org"),
        ("CORS_ORIGINS", "https://me@lab.example.org"),
        ("CORS_ORIGINS", "https://lab.example.org:port"),
        ("CORS_ORIGINS", "https://lab.example.org:443"),  # browsers leave out the usual port
        ("CORS_ORIGINS", "http://lab.example.org:80"),
        ("CORS_ORIGINS", "null"),
        ("CORS_ORIGINS", "file://"),
        ("CORS_ORIGINS", "https://lab.example.org,*.org"),
    ],
)
def test_a_bad_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name}: "):
        load_settings()


def test_by_default_sequences_share_batches_and_no_device_waits() -> None:
    found = load_settings()
    assert found.batch_queue_enabled is True
    assert (found.batch_queue_max_size, found.batch_queue_max_wait_ms) == (None, 0)
    assert found.max_queue_tokens is None
    assert (found.max_concurrent_requests, found.max_body_mb) == (256, 32)


def test_the_batch_queue_and_the_limits_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BATCH_QUEUE_ENABLED": "false",
        "BATCH_QUEUE_MAX_SIZE": "32",
        "BATCH_QUEUE_MAX_WAIT_MS": "2.5",
        "MAX_QUEUE_TOKENS": "64",
        "MAX_CONCURRENT_REQUESTS": "1",
        "MAX_BODY_MB": "0.5",
    }.items():
        monkeypatch.setenv(name, value)
    found = load_settings()
    assert found.batch_queue_enabled is False
    assert (found.batch_queue_max_size, found.batch_queue_max_wait_ms) == (32, 2.5)
    assert (found.max_queue_tokens, found.max_concurrent_requests, found.max_body_mb) == (64, 1, 0.5)


def test_every_bad_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    monkeypatch.setenv("BATCH_TOKENS", "1")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == ["LOG_LEVEL", "BATCH_TOKENS"]


def test_an_unknown_model_is_answered_with_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "esm2_t33_650")
    with pytest.raises(SettingsError, match=r"did you mean esm2_t33_650M.*prot_t5"):
        load_settings()


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://user:secret@example:6379/2")
    assert load_settings().masked_redis_url == "redis://***@example:6379/2"
    monkeypatch.setenv("REDIS_URL", "unix:///run/redis.sock?password=secret")
    assert load_settings().masked_redis_url == "unix:///run/redis.sock?***"
    monkeypatch.setenv("REDIS_URL", "gopher://user:secret@example")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "secret" not in str(error.value)


def test_versions_are_kept_in_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", " esm2_mini:abc , prot_t5 ")
    assert load_settings().models == ("esm2_mini:abc", "prot_t5")


def test_resolved_versions_reach_the_processes_that_are_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "esm2_mini")
    monkeypatch.setenv("TEXT_MODELS", "a/b=folder,minilm")
    settings.pin_models(["esm2_mini:abc", "prot_t5:def"], {"a/b": "a--b:1", "minilm": "minilm:2"})
    assert load_settings().models == ("esm2_mini:abc", "prot_t5:def")
    assert load_settings().texts == {"a/b": "a--b:1", "minilm": "minilm:2"}


def test_text_models_have_a_name_and_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT_MODELS", "mini=/models/mini , BAAI/bge-small-en-v1.5,tagged=mini:0a")
    monkeypatch.setenv("DEFAULT_EMBEDDING_MODEL", "mini")
    monkeypatch.setenv("DEFAULT_RERANKING_MODEL", "BAAI/bge-reranker-base")
    assert load_settings().texts == {
        "mini": "/models/mini",
        "BAAI/bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
        "tagged": "mini:0a",
        "BAAI/bge-reranker-base": "BAAI/bge-reranker-base",
    }


def test_texts_can_be_served_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "none")
    with pytest.raises(SettingsError, match=r"^MODELS is none, and TEXT_MODELS names none either$"):
        load_settings()
    monkeypatch.setenv("TEXT_MODELS", "minilm")
    assert load_settings().models == ()
    settings.pin_models([], {"minilm": "minilm:1"})
    assert load_settings().models == ()


def test_attention_that_cannot_compute_in_fp32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT_ATTENTION", "flash_attention_2")
    with pytest.raises(SettingsError, match="needs TEXT_PRECISION=bf16 or fp16"):
        load_settings()
    monkeypatch.setenv("TEXT_PRECISION", "bf16")
    load_settings()


def test_a_default_has_a_name_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_EMBEDDING_MODEL", "/models/minilm")
    with pytest.raises(SettingsError, match=r"^DEFAULT_EMBEDDING_MODEL: '/models/minilm' is no name"):
        load_settings()


def test_a_protein_model_can_be_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_EMBEDDING_MODEL", "esm2_mini")
    assert load_settings().texts == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("/models/mini", "is no name; write name=source"),
        ("esm2_mini=/models/mini", "means something else already"),
        ("embedding_models=/models/mini", "means something else already"),
        ("a/b=x,A-B=y", "names two models alike"),
        ("ESM2-mini=x", "means something else already"),
    ],
)
def test_names_of_text_models_that_cannot_be_are_told(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("TEXT_MODELS", value)
    with pytest.raises(SettingsError, match=f"^TEXT_MODELS: .*{reason}"):
        load_settings()


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"^DATA_DIR: "):
        Settings(data_dir=tmp_path / "file" / "data").make_folders()


def test_a_data_folder_that_is_made_is_for_this_user_alone(tmp_path: Path) -> None:
    """It holds what people have submitted. One that is there is left as its owner made it."""
    folder = tmp_path / "a" / "data"
    Settings(data_dir=folder).make_folders()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o750)
    Settings(data_dir=folder).make_folders()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == settings.VERSION


def test_by_default_no_key_is_asked_for_and_no_page_of_elsewhere_may_ask() -> None:
    found = load_settings()
    assert found.api_keys.get_secret_value() == found.admin_api_keys.get_secret_value() == ""
    assert (found.api_keys_file, found.admin_api_keys_file) == (None, None)
    assert (found.health_open, found.metrics_open, found.docs_open) == (True, True, True)
    assert (found.requests_per_minute, found.tokens_per_minute, found.cors_origins) == (None, None, ())
    assert (found.log_format, found.otel_exporter_otlp_endpoint) == ("text", None)


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "alice:alice-key-0123456789")
    monkeypatch.setenv("ADMIN_API_KEYS", "root:root-key-0123456789")
    found = load_settings()
    assert found.api_keys.get_secret_value() == "alice:alice-key-0123456789"
    for shown in (repr(found), str(found.model_dump()), found.model_dump_json()):
        assert "-key-" not in shown
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "-key-" not in str(error.value)


def test_origins_are_taken_as_browsers_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = ("https://lab.example.org", "http://localhost:8888", "http://[::1]:8888", "http://192.0.2.7")
    monkeypatch.setenv("CORS_ORIGINS", " , ".join(origins))
    assert load_settings().cors_origins == origins
    monkeypatch.setenv("CORS_ORIGINS", "*")
    assert load_settings().cors_origins == ("*",)


def test_keys_limits_and_traces_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "API_KEYS_FILE": str(tmp_path / "keys"),
        "HEALTH_OPEN": "false",
        "REQUESTS_PER_MINUTE": "60",
        "TOKENS_PER_MINUTE": "100000",
        "LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "proteins",
        "SHUTDOWN_TIMEOUT_SECS": "0",
    }.items():
        monkeypatch.setenv(name, value)
    found = load_settings()
    assert (found.api_keys_file, found.health_open) == (tmp_path / "keys", False)
    assert (found.requests_per_minute, found.tokens_per_minute, found.log_format) == (60, 100_000, "json")
    assert found.otel_exporter_otlp_endpoint == "http://collector:4318"
    assert (found.otel_service_name, found.shutdown_timeout_secs) == ("proteins", 0)
