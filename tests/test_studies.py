"""Studies: the file, and the product that it stands for."""

from __future__ import annotations

import tomllib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tombola as tb
from tombola.asked import draw_recipe
from tombola.comparing import ladder
from tombola.errors import InputError
from tombola.studies import library
from tombola.studies.plan import dense_of, plan
from tombola.studies.seeds import MOST_SEEDS, seed_list
from tombola.studies.state import look
from tombola.studies.study import Study, read_study

FULL = """
name = "tried"
seeds = "0-2"
[[draws]]
tasks = ["digits-mlp", "digits-conv"]
methods = ["imp", "one_shot"]
densities = [0.2, 0.5]
survivors = ["reset", "lr-rewind"]
controls = ["reinit"]
[draws.training]
lr = [0.1, 0.2]
momentum = 0.0
"""


def read(text: str) -> Study:
    return read_study(tomllib.loads(text), "tried.toml")


# ---- seeds


def test_seeds_as_people_write_them() -> None:
    assert seed_list("0") == [0]
    assert seed_list("3, 0-2,1 - 4") == [3, 0, 1, 2, 4]
    assert len(seed_list(f"0-{MOST_SEEDS - 1}")) == MOST_SEEDS
    for wrong in ("", "a", "-1", "3-1", "1,,2", "1.5", "\u0663"):
        with pytest.raises(InputError, match="must be whole numbers"):
            seed_list(wrong)
    with pytest.raises(InputError, match=f"at most {MOST_SEEDS}"):
        seed_list(f"0-{MOST_SEEDS}")


# ---- the product


def test_a_block_is_the_product_of_its_lists() -> None:
    found = plan(read(FULL))
    assert len(found.draws) == 2 * 2 * 2 * 2 * 3
    counted = Counter((d.recipe.task, d.recipe.method, d.recipe.survivors, d.recipe.training.lr) for d in found.draws)
    assert len(counted) == 16
    assert set(counted.values()) == {3}
    assert {d.recipe.seed for d in found.draws} == {0, 1, 2}
    assert all(d.recipe.controls == ("reinit",) for d in found.draws)
    assert found.varied == ("survivors", "training.lr")
    assert found.label(found.draws[0]) == "digits-mlp · imp · seed 0 · survivors reset · lr 0.1"
    assert len({found.label(d) for d in found.draws}) == len(found.draws)


def test_each_method_goes_to_the_densities_in_its_own_way() -> None:
    found = plan(read(FULL))
    for draw in found.draws:
        way = ladder([0.5, 0.2], 0.2) if draw.recipe.method == "imp" else [0.5, 0.2]
        assert list(draw.densities) == way
        assert draw.asked == (0.5, 0.2)
        options = {
            name: getattr(draw.recipe, name) for name in ("method", "seed", "survivors", "controls", "densities")
        }
        options["training"] = {"lr": draw.recipe.training.lr, "momentum": 0.0}
        if draw.recipe.method == "imp":
            options["control_rounds"] = (way.index(0.5) + 1, way.index(0.2) + 1)
        assert draw_recipe(tb.get_task(draw.recipe.task), options) == draw.recipe, "as tombola draw makes it"


def test_rounds_are_counted_as_a_draw_counts_them() -> None:
    text = 'name="x"\n[[draws]]\ntasks="digits-mlp"\nmethods=["imp","one_shot"]\nrounds=3\ncontrols=["reinit"]\n'
    found = plan(read(text + "control_draws=2\ncontrol_rounds=[1,3]"))
    imp, one_shot = found.draws
    assert imp.densities == one_shot.densities
    assert imp.densities == pytest.approx((0.802, 0.6434, 0.5163), abs=1e-4)  # a half of the rate in the last layer
    assert imp.controls == one_shot.controls == 4
    assert found.runs == 2 * (1 + 3 + 4)


def test_what_two_blocks_have_is_there_once() -> None:
    one = '[[draws]]\ntasks="digits-mlp"\nmethods="imp"\nrounds=[2,3]\n'
    found = plan(read(f'name="x"\n{one}{one.replace("[2,3]", "[3,4]")}'))
    assert [d.recipe.rounds for d in found.draws] == [2, 3, 4]


def test_a_draw_of_each_dense_net_comes_first_and_the_one_that_rewinds_before_others() -> None:
    more = '[[draws]]\ntasks="digits-mlp"\nmethods="imp"\nrounds=2\nsurvivors="rewind"\nback_to="5it"\n'
    found = plan(read(FULL + more + "[draws.training]\nlr=0.1\nmomentum=0.0\n"))
    order = found.in_order()
    assert Counter(d.key for d in order) == Counter(d.key for d in found.draws)
    nets = len({dense_of(d.recipe) for d in order})
    assert nets == 2 * 2 * 3
    assert len({dense_of(d.recipe) for d in order[:nets]}) == nets
    rewinds = [d for d in order if d.recipe.survivors == "rewind"]
    assert len(rewinds) == 3
    assert all(d in order[:nets] for d in rewinds)


# ---- the quick size


def test_the_quick_size_puts_its_keys_in_place_of_the_full_ones() -> None:
    quick = '[quick]\nseeds=7\ntasks="digits-mlp"\nrounds=2\n[quick.training]\nsteps="30it"\n'
    block = '[[draws]]\ntasks="digits-conv"\nmethods="snip"\nrounds=9\n[draws.quick]\nrounds=5\nmethods="synflow"\n'
    study = read(FULL + block.replace("rounds=9", "densities=[0.3]") + quick)
    full, small = plan(study), plan(study, quick=True)
    assert {d.recipe.seed for d in full.draws} == {0, 1, 2}
    assert len(small.draws) == 2 * 2 + 1, "the full size's rates of learning are replaced with the whole training"
    assert {(d.recipe.task, d.recipe.seed, str(d.recipe.training.steps)) for d in small.draws} == {
        ("digits-mlp", 7, "30it")
    }
    assert [d.recipe.rounds for d in small.draws] == [2, 2, 2, 2, 5], "rounds take the place of densities"
    assert small.draws[-1].recipe.method == "synflow"
    assert small.draws[0].recipe.training.lr == tb.get_task("digits-mlp").recipe.lr
    assert (full.size, small.size) == ("full", "quick")


def test_without_a_quick_table_both_sizes_are_the_same() -> None:
    study = read(FULL)
    assert [d.key for d in plan(study).draws] == [d.key for d in plan(study, quick=True).draws]


# ---- what is refused

HEAD = 'name = "x"\n[[draws]]\ntasks = "digits-mlp"\nmethods = "imp"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'name' is missing at the top of the file\n'draws' is missing at the top of the file"),
        ('name = "No Name"\n[[draws]]', "name: must match pattern"),
        ("draws = 3\n" + HEAD[:11], "[[draws]]: must be a valid list, but got 3"),
        ('name = "x"\ndraws = [1]', "[[draws]] 1: must be a valid table, but got 1"),
        ('seeds = "2-1"\n' + HEAD, "seeds: must be whole numbers of 0 or more, like 0 or 0,1,2 or 0-4, but got '2-1'"),
        ("seeds = [-1]\n" + HEAD, "seeds value 1: must be greater than or equal to 0, but got -1"),
        ("sedes = 1\n" + HEAD, "there is no key 'sedes'. Did you mean 'seeds'?"),
        (HEAD + "survivor = 1", "there is no key 'survivor' in [[draws]] 1. Did you mean 'survivors'?"),
        (HEAD + "task = 'a'", "there is no key 'task' in [[draws]] 1. Did you mean 'tasks'?"),
        (HEAD + "seed = 1", "'seeds' belongs at the top of the file"),
        (HEAD + "lr = 1", "there is no key 'lr' in [[draws]] 1. 'lr' belongs under [draws.training]"),
        (HEAD + "[draws.training]\nrate = 1", "in [[draws]] 1 [training]. 'rate' belongs under [[draws]]"),
        (HEAD + "[draws.training]\nstpes = 1", "in [[draws]] 1 [training]. Did you mean 'steps'?"),
        (HEAD + "[draws.quick]\nseeds = 1", "there is no key 'seeds' in [[draws]] 1 [quick]"),
        (HEAD + "[quick]\nmetods = 1", "there is no key 'metods' in [quick]. Did you mean 'methods'?"),
        (HEAD + "rate = 3", "[[draws]] 1 rate: must be less than 1, but got 3"),
        (HEAD + "rate = [0.1, 3]", "[[draws]] 1 rate value 2: must be less than 1, but got 3"),
        (HEAD + "rate = []", "[[draws]] 1 rate: must have at least 1 item"),
        (HEAD + "survivors = 'rest'", "[[draws]] 1 survivors: must be 'reset'"),
        (HEAD + "densities = [0.5, 2]", "[[draws]] 1 densities value 2: must be less than 1, but got 2"),
        (HEAD + "[draws.training]\nsteps = 'x'", "[[draws]] 1 [training] steps: a duration must be a number with"),
        (HEAD + "[draws.training]\nbetas = [0.9]", "[[draws]] 1 [training] betas value 2"),
        (HEAD + "[draws.settings]\nfraction = 'a'", "[[draws]] 1 settings"),
        (HEAD + "[quick]\nrounds = 0", "[quick] rounds: must be greater than 0, but got 0"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_key_rule_and_value(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value).startswith("tried.toml: ")
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\n[[draws]]\nmethods = "imp"', "[[draws]] 1 must name its tasks: tasks = [...]"),
        (HEAD.replace("mlp", "mpl"), "[[draws]] 1: unknown task 'digits-mpl'. Did you mean 'digits-mlp'?"),
        (HEAD.replace("imp", "snpi"), "[[draws]] 1: unknown method 'snpi'. Did you mean 'snip'?"),
        (HEAD + 'rounds = 2\ndensity = 0.5', "method imp: with the geometric schedule give rounds or density"),
        (HEAD + 'survivors = ["reset", "rewind"]', "survivors rewind: survivors 'rewind' needs back_to above 0"),
        (HEAD + 'criterion = "magnitud"', "unknown criterion 'magnitud'"),
        ('seeds = "0-999"\n' + HEAD + "rounds = [1, 2, 3]\nmargin = [0.1, 0.2, 0.3, 0.4]", "make 12,000"),
    ],
)  # fmt: skip
def test_a_draw_that_cannot_be_is_refused_before_any_training(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(read(text))
    assert "tried.toml" in str(caught.value)
    assert said in str(caught.value)


def test_a_block_may_leave_out_what_is_refused() -> None:
    text = HEAD + 'rounds = 2\nsurvivors = ["reset", "rewind"]\nrefused = "leave out"'
    found = plan(read(text))
    assert [d.recipe.survivors for d in found.draws] == ["reset"]
    assert [one.name for one in found.refused] == ["task digits-mlp, method imp, survivors rewind"]
    assert "back_to" in found.refused[0].reason
    with pytest.raises(InputError, match=r"no draw is left: .*rewind"):
        plan(read(text.replace('["reset", "rewind"]', '"rewind"')))


@given(st.dictionaries(st.sampled_from(["name", "seeds", "draws", "quick", "x"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["tasks", "rate", "training", "quick", "y"]), inner, max_size=3),
    max_leaves=8,
)))  # fmt: skip
def test_no_content_of_a_file_ends_in_another_error(source: dict[str, Any]) -> None:
    with suppress(InputError):
        read_study(source, "tried.toml").blocks(quick=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("bytes.toml", b"\xff"), ("text.toml", b"name = "), ("deep.toml", b"a=" + b"[" * 50_000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            library.load(str(tmp_path / name))
    with pytest.raises(InputError, match=r"none\.toml can't be read"):
        library.load(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="Did you mean 'lenet-tickets'"):
        library.load("lenet-ticket")


# ---- the shipped studies


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", library.shipped())
def test_a_shipped_study_loads_in_both_sizes(name: str, quick: bool) -> None:
    study = library.load(name)
    found = plan(study, quick)
    assert study.name == name
    assert study.description
    assert not found.refused
    assert len({found.label(d) for d in found.draws}) == len(found.draws)
    if quick:
        tasks = {d.recipe.task for d in found.draws}
        assert all(tb.TASKS[name].data_sets == () for name in tasks - {"wikitext2-lstm-small"}), "no download"
    else:
        assert len(found.draws) >= 9
    assert found.runs == sum(state.total for state in look(found, None))


def test_the_study_of_the_documentation_is_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    study = read(text.partition("```toml\n")[2].partition("```")[0])
    full, small = plan(study), plan(study, quick=True)
    assert len(full.draws) == (2 * 2 * 2 + 2) * 5
    assert [(d.recipe.task, d.recipe.seed, str(d.recipe.training.steps)) for d in small.draws] == [
        ("digits-mlp", 0, "300it")
    ] * (2 * 2 + 1)
