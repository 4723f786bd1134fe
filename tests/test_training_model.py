"""The model: codes, reconstructions, hand-over to the rest of the package, files on disk."""

import doctest
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import sparse_retrieval
from sparse_retrieval.training import CompresSAE, CompresSAEConfig, LatentCode, trainer
from sparse_retrieval.training import model as model_module

D, S, K = 12, 40, 5


def rows(n: int = 9, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed))


def model(**options: Any) -> CompresSAE:
    made = CompresSAE(D, S, K, **options)
    with torch.no_grad():
        made.encoder_bias.copy_(0.1 * rows(1, S, seed=5)[0])
    return made


def dense_codes(m: CompresSAE, x: Tensor, k: int) -> np.ndarray:
    """Codes as a dense (n, s) matrix in double precision, by numpy alone."""
    unit = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    weight, bias = m.encoder_weight.detach().double(), m.encoder_bias.detach().double()
    e = unit @ weight.numpy().T + bias.numpy()
    kept = np.argsort(-np.abs(e), axis=1)[:, :k]
    codes = np.zeros_like(e)
    np.put_along_axis(codes, kept, np.take_along_axis(e, kept, axis=1), axis=1)
    return codes


@pytest.mark.parametrize("k", [None, 1, 3, K, 17, S])
def test_encode_keeps_the_k_largest_latents_with_their_signs(k: int | None) -> None:
    m, x = model(), 3 * rows()
    code = m.encode(x, k)
    kept = K if k is None else k
    assert isinstance(code, LatentCode)
    assert code.indices.shape == code.values.shape == (9, kept)
    assert code.indices.dtype == torch.int64
    magnitudes = code.values.abs()
    assert (magnitudes[:, :-1] >= magnitudes[:, 1:]).all()
    assert (code.values < 0).any()
    dense = torch.zeros(9, S).scatter(1, code.indices, code.values.detach())
    # products of 12 terms below 1 in float32
    np.testing.assert_allclose(dense.numpy(), dense_codes(m, x, kept), rtol=0, atol=1e-6)


def test_codes_are_nested_in_k() -> None:
    m, x = model(), rows()
    wide, narrow = m.encode(x, 20), m.encode(x, 6)
    assert torch.equal(wide.indices[:, :6], narrow.indices)
    assert torch.equal(wide.values[:, :6], narrow.values)


def test_decode_takes_pairs_dense_and_sparse_tensors() -> None:
    m, x = model(), rows()
    code = m.encode(x)
    dense = torch.from_numpy(dense_codes(m, x, K)).float()
    expected = dense @ m.decoder_weight
    for z in (code, tuple(code), dense, dense.to_sparse_coo(), _csr(dense)):
        torch.testing.assert_close(m.decode(z), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(m(x), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(m(x, 2), m.decode(m.encode(x, 2)))


def _csr(dense: Tensor) -> Tensor:
    starts = torch.cat([torch.zeros(1), (dense != 0).sum(1).cumsum(0)]).long()
    row, column = dense.nonzero(as_tuple=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in beta", and that invariants go unchecked by default
        return torch.sparse_csr_tensor(starts, column, dense[row, column], dense.shape)


def test_decode_prefixes_reconstructs_every_cut() -> None:
    m, x = model(), rows()
    prefixes = m.decode_prefixes(m.encode(x, 20), (2, 5, 20))
    for prefix, k in zip(prefixes, (2, 5, 20), strict=True):
        torch.testing.assert_close(prefix, m(x, k), rtol=0, atol=1e-6)


def test_a_zero_row_has_an_empty_code_and_a_zero_reconstruction() -> None:
    m, x = model(), rows()
    x[4] = 0
    code = m.encode(x)
    assert not code.values[4].any()
    assert (code.values[[0, 1, 2, 3, 5, 6, 7, 8]] != 0).all()
    assert not m(x)[4].any()
    codes = m.sparse_codes(x).to_scipy()
    assert codes[4].nnz == 0
    assert codes[5].nnz == K


def test_a_row_with_nan_gives_nan_and_touches_no_other() -> None:
    m, x = model(), rows()
    clean = m.encode(x)
    x[4, 3] = float("nan")
    code = m.encode(x)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert code.values[4].isnan().all()
    assert torch.equal(code.values[others], clean.values[others])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_encode_converts_other_dtypes(dtype: torch.dtype) -> None:
    m, x = model(), rows().to(dtype)
    code = m.encode(x)
    assert code.values.dtype == torch.float32
    assert torch.equal(code.values, m.encode(x.float()).values)


BAD_ENCODES: list[tuple[Any, Any, type[Exception], str]] = [
    (rows(d=11), None, ValueError, "x has 11 columns, this model takes 12"),
    (rows()[0], None, ValueError, "x must be two-dimensional (n, d), got (12,)"),
    (rows().view(3, 3, 12), None, ValueError, "got (3, 3, 12)"),
    (rows().long(), None, TypeError, "x must be a floating-point tensor, got torch.int64"),
    (rows().numpy(), None, TypeError, "x must be a floating-point tensor, got ndarray"),
    (rows(), 0, ValueError, "k must be at least 1, got 0"),
    (rows(), -1, ValueError, "k must be at least 1, got -1"),
    (rows(), S + 1, ValueError, "k must be at most hidden_dim: got k = 41, hidden_dim = 40"),
    (rows(), 2.5, TypeError, "k must be an integer, got 2.5"),
]


@pytest.mark.parametrize(("x", "k", "error", "message"), BAD_ENCODES)
def test_encode_refuses(x: Any, k: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        model().encode(x, k)
    assert message in str(caught.value)


BAD_DECODES: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(3, S + 1), ValueError, "z must be (n, hidden_dim = 40), got (3, 41)"),
    (torch.zeros(S), ValueError, "z must be (n, hidden_dim = 40), got (40,)"),
    ([[0.0] * S], TypeError, "z must be a LatentCode, a pair of tensors"),
    ((torch.zeros(3, 2), [1.0]), TypeError, "got tuple"),
    (
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 4)),
        ValueError,
        "indices and values must have one shape (n, k), got (3, 2) and (3, 4)",
    ),
]


@pytest.mark.parametrize(("z", "error", "message"), BAD_DECODES)
def test_decode_refuses(z: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        model().decode(z)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["tensor", "array", "memmap", "float16"])
@pytest.mark.parametrize("batch_size", [1, 4, 4096])
def test_sparse_codes_are_the_codes_of_encode(kind: str, batch_size: int, tmp_path: Path) -> None:
    m, x = model(), rows().half().float()
    np.save(tmp_path / "x.npy", x.numpy())
    source: Any = {
        "tensor": x,
        "array": x.numpy(),
        "memmap": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "float16": x.half().numpy(),
    }[kind]
    codes = m.sparse_codes(source, 3, batch_size=batch_size)
    assert len(codes) == 9
    assert codes.dim == S
    assert codes.nnz == 27
    dense = codes.to_scipy().toarray()
    np.testing.assert_allclose(dense, dense_codes(m, x, 3), rtol=0, atol=1e-6)
    assert not any(p.grad is not None for p in m.parameters())


def test_sparse_codes_refuse_bad_rows_by_name() -> None:
    x = rows().numpy()
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="x holds NaN, inf or a number beyond float32 in row 7"):
        model().sparse_codes(x, batch_size=3)
    with pytest.raises(ValueError, match="x has 11 columns, this model takes 12"):
        model().sparse_codes(rows(d=11))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model().sparse_codes(rows(), batch_size=0)
    with pytest.raises(TypeError, match="got an array of object"):
        model().sparse_codes(x.astype(object))


def test_dictionary_holds_a_copy_of_the_atoms() -> None:
    m = model()
    dictionary = m.dictionary()
    atoms = np.array(dictionary.atoms)
    assert atoms.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(atoms, m.decoder_weight.detach().numpy(), rtol=0, atol=1e-6)
    with torch.no_grad():
        m.decoder_weight.zero_()
    np.testing.assert_array_equal(np.array(dictionary.atoms), atoms)


def test_start_is_unit_atoms_zero_bias_and_kaiming_bounds() -> None:
    m = CompresSAE(64, 1024, 8)
    assert not m.encoder_bias.any()
    norms = torch.linalg.vector_norm(m.decoder_weight.detach().double(), dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)
    bound = (6 / 1024) ** 0.5
    weight = m.encoder_weight.detach()
    assert weight.abs().max() <= bound
    # uniform on [-b, b]: standard deviation b / sqrt(3), to 1% from 65,536 draws
    torch.testing.assert_close(float(weight.std()), bound / 3**0.5, rtol=0.01, atol=0)


def test_tied_start_copies_the_decoder_and_stays_free() -> None:
    m = CompresSAE(D, S, K, init="tied")
    assert torch.equal(m.encoder_weight, m.decoder_weight)
    assert m.encoder_weight.data_ptr() != m.decoder_weight.data_ptr()
    independent = CompresSAE(D, S, K)
    assert torch.equal(m.decoder_weight, independent.decoder_weight)
    assert not torch.equal(m.encoder_weight, independent.encoder_weight)


def test_seed_decides_the_weights_and_no_global_state_does() -> None:
    state = torch.get_rng_state()
    first = CompresSAE(D, S, K, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second, other = CompresSAE(D, S, K, seed=4), CompresSAE(D, S, K, seed=5)
    assert torch.equal(first.encoder_weight, second.encoder_weight)
    assert torch.equal(first.decoder_weight, second.decoder_weight)
    assert not torch.equal(first.encoder_weight, other.encoder_weight)
    assert not torch.equal(first.decoder_weight, other.decoder_weight)


def test_repr_shows_the_configuration() -> None:
    expected = "CompresSAE(input_dim=12, hidden_dim=40, k=5, init='tied', seed=2)"
    assert repr(CompresSAE(D, S, K, init="tied", seed=2)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_then_load_gives_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    m = model(init="tied", seed=3).to(dtype)
    m.save_pretrained(tmp_path / "new" / "folder")
    loaded = CompresSAE.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == m.config
    for (name, a), (other, b) in zip(m.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert a.dtype == b.dtype
        assert b.requires_grad
        assert torch.equal(a, b)
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_saving_again_replaces_both_files(tmp_path: Path) -> None:
    model(seed=1).save_pretrained(tmp_path)
    second = model(seed=2)
    second.save_pretrained(tmp_path)
    loaded = CompresSAE.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder_weight, second.encoder_weight)


def test_a_failed_save_keeps_the_old_model_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model(seed=1)
    first.save_pretrained(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparse_retrieval._files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        model(seed=2).save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = CompresSAE.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder_weight, first.encoder_weight)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    header = json.loads(path.read_text())
    for key, value in changes.items():
        if key in header["config"] or key == "epochs":
            header["config"][key] = value
        else:
            header[key] = value
    path.write_text(json.dumps(header))


def _edit_tensors(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    safetensors.torch.save_file(tensors, path)


BAD_FILES: list[tuple[str, Any, type[Exception], str]] = [
    ("no folder", lambda f: [p.unlink() for p in f.iterdir()], FileNotFoundError, "config.json"),
    (
        "no weights",
        lambda f: (f / "model.safetensors").unlink(),
        FileNotFoundError,
        "model.safetensors does not exist; save_pretrained writes it",
    ),
    (
        "cut weights",
        lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0"),
        ValueError,
        "is no readable safetensors file",
    ),
    (
        "cut config",
        lambda f: (f / "config.json").write_text('{"format": '),
        ValueError,
        "is no readable JSON file",
    ),
    (
        "other config",
        lambda f: (f / "config.json").write_text('{"hidden_size": 3}'),
        ValueError,
        "does not describe a sparse_retrieval.CompresSAE",
    ),
    (
        "future",
        lambda f: _edit_config(f, version=2),
        ValueError,
        "has version 2, this release reads 1",
    ),
    (
        "unknown header key",
        lambda f: _edit_config(f, comment="x"),
        ValueError,
        "holds unknown keys: 'comment'",
    ),
    (
        "unknown config key",
        lambda f: _edit_config(f, epochs=3),
        ValueError,
        "CompresSAEConfig does not know 'epochs'",
    ),
    ("bad k", lambda f: _edit_config(f, k=0), ValueError, "k must be at least 1, got 0"),
    (
        "config of another save",
        lambda f: _edit_config(f, k=7),
        ValueError,
        "come from different saves",
    ),
    (
        "missing tensor",
        lambda f: _edit_tensors(f, encoder_bias=None),
        ValueError,
        "lacks encoder_bias; a CompresSAE has encoder_weight, encoder_bias, decoder_weight",
    ),
    (
        "unexpected tensor",
        lambda f: _edit_tensors(f, decoder_bias=torch.zeros(D), encoder_bias=None),
        ValueError,
        "lacks encoder_bias and holds unexpected decoder_bias",
    ),
    (
        "shape",
        lambda f: _edit_tensors(f, encoder_bias=torch.zeros(S - 1)),
        ValueError,
        "encoder_bias has shape (39,), config.json says (40,)",
    ),
    (
        "dtypes",
        lambda f: _edit_tensors(f, encoder_bias=torch.zeros(S, dtype=torch.float64)),
        ValueError,
        "weights must share one floating-point dtype",
    ),
    (
        "not finite",
        lambda f: _edit_tensors(f, encoder_bias=torch.full((S,), float("nan"))),
        ValueError,
        "encoder_bias holds NaN or inf",
    ),
]


@pytest.mark.parametrize(
    ("damage", "error", "message"), [c[1:] for c in BAD_FILES], ids=[c[0] for c in BAD_FILES]
)
def test_load_refuses(damage: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    CompresSAE.from_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error) as caught:
        CompresSAE.from_pretrained(tmp_path)
    assert message in str(caught.value)


def test_save_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        model().save_pretrained(tmp_path / "file")


def test_from_config_makes_the_same_model() -> None:
    config = CompresSAEConfig(D, S, K, "tied", 9)
    made = CompresSAE.from_config(config)
    assert made.config == config
    assert torch.equal(made.encoder_weight, CompresSAE(D, S, K, init="tied", seed=9).encoder_weight)


@pytest.mark.parametrize("module", [model_module, trainer])
def test_docstring_examples_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_without_torch_the_import_names_the_extra() -> None:
    package = str(Path(sparse_retrieval.__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {package!r}); sys.modules['torch'] = None\n"
        "import sparse_retrieval.training"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ImportError: sparse_retrieval.training needs torch, which is not installed: "
        "pip install 'sparse_retrieval[train]'"
    )
