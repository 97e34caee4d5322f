"""The class table, and the ways to write a label."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ced_edge import labels
from ced_edge.errors import InputError


def test_the_table_is_the_published_one(shared: Path) -> None:
    with (shared / "meta" / "class_labels_indices.csv").open(newline="") as f:
        published = [(int(r["index"]), r["mid"], r["display_name"]) for r in csv.DictReader(f)]
    assert [(x.index, x.mid, x.name) for x in labels.labels()] == published


def test_the_table_is_complete_and_without_doubles() -> None:
    table = labels.labels()
    assert [x.index for x in table] == list(range(527))
    assert len({x.mid for x in table}) == len({x.name.casefold() for x in table}) == 527
    assert (table[0].mid, table[0].name, table[500].name, table[526].name) == (
        "/m/09x0r",
        "Speech",
        "Silence",
        "Field recording",
    )


@pytest.mark.parametrize("text", ["1", " 1 ", "/m/05zppz", "Male speech, man speaking", "male SPEECH, man speaking "])
def test_index_mid_and_name_mean_the_same(text: str) -> None:
    assert labels.index_of(text) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("527", "label 527 is out of range: the indices are 0 to 526"),
        ("-1", "label -1 is out of range: the indices are 0 to 526"),
        ("Spech", "unknown label 'Spech': give an index, a mid or a name of the 527 AudioSet classes"),
        ("", "unknown label ''"),
        ("1.5", "unknown label '1.5'"),
        ("--1", "unknown label '--1'"),
    ],
)
def test_a_wrong_label_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        labels.index_of(text)
    assert message in str(caught.value)


@given(
    indices=st.sets(st.integers(0, 526), max_size=8),
    separator=st.sampled_from([";", ",", "; ", " ; "]),
    form=st.sampled_from(["index", "mid", "name"]),
)
def test_joined_labels_come_apart_again(indices: set[int], separator: str, form: str) -> None:
    table = labels.labels()
    words = [str(i) if form == "index" else table[i].mid if form == "mid" else table[i].name for i in indices]
    assert labels.parse(separator.join(words)) == tuple(sorted(indices))


def test_mixed_and_repeated_labels() -> None:
    assert labels.parse("Dog, /m/09x0r; 74;Male speech, man speaking, Music") == (0, 1, 74, 137)
    assert labels.parse("74;75;") == (74, 75)
    assert labels.parse("") == ()
    with pytest.raises(InputError, match="unknown label 'man'"):
        labels.parse("Music, man")


def test_the_hash_is_over_mids_and_names_in_order() -> None:
    text = json.dumps([[x.mid, x.name] for x in labels.labels()], separators=(",", ":"))
    assert labels.labels_hash() == hashlib.sha256(text.encode()).hexdigest()


def test_a_long_field_is_parsed_or_refused_at_once() -> None:
    """Each part is compared with names of a few parts only, not with all that follows."""
    assert labels.parse(",".join(["1", "2"] * 20_000)) == (1, 2)
    with pytest.raises(InputError, match="label 99999999999999999999 is out of range"):
        labels.index_of("9" * 10_000)


def fsd50k(name: str) -> str:
    """A name as FSD50K writes it: "Dishes, pots, and pans" is `Dishes_and_pots_and_pans`."""
    return name.replace(", and ", ", ").replace(", ", " and ").replace(" ", "_")


def test_each_underscored_name_is_exactly_one_class() -> None:
    names = [fsd50k(label.name) for label in labels.labels()]
    assert len({name.casefold() for name in names}) == 527
    for label, name in zip(labels.labels(), names, strict=True):
        for spelling in (name, name.lower(), name.replace("_and_", "_or_")):
            assert labels.index_of(spelling) == label.index
    assert labels.parse(",".join(names)) == tuple(range(527))
    assert labels.parse("Fill_(with_liquid),Male_speech_and_man_speaking,Hi-hat") == (1, 172, 452)


def test_no_class_is_made_of_names_of_others() -> None:
    """Two labels that are joined by a comma must not become a third."""
    for label in labels.labels():
        parts = [part.strip() for part in label.name.split(",")]
        assert len(parts) == 1 or not all(labels.find(part) is not None for part in parts)


ESC50 = (
    "dog,rooster,pig,cow,frog,cat,hen,insects,sheep,crow,rain,sea_waves,crackling_fire,crickets,chirping_birds,"
    "water_drops,wind,pouring_water,toilet_flush,thunderstorm,crying_baby,sneezing,clapping,breathing,coughing,"
    "footsteps,laughing,brushing_teeth,snoring,drinking_sipping,door_wood_knock,mouse_click,keyboard_typing,"
    "door_wood_creaks,can_opening,washing_machine,vacuum_cleaner,clock_alarm,clock_tick,glass_breaking,"
    "helicopter,chainsaw,siren,car_horn,engine,train,church_bells,airplane,fireworks,hand_saw"
)
URBANSOUND8K = (
    "air_conditioner,car_horn,children_playing,dog_bark,drilling,engine_idling,gun_shot,jackhammer,siren,street_music"
)
DCASE = (
    "Alarm_bell_ringing,Blender,Cat,Dishes,Dog,Electric_shaver_toothbrush,Frying,Running_water,Speech,Vacuum_cleaner"
)


@pytest.mark.parametrize(
    ("names", "outside"),
    [
        (ESC50, ("drinking_sipping", "can_opening", "washing_machine")),
        (URBANSOUND8K, ()),
        (DCASE, ("Alarm_bell_ringing", "Electric_shaver_toothbrush", "Running_water")),
    ],
)
def test_every_name_of_a_data_set_is_known(names: str, outside: tuple[str, ...]) -> None:
    read = labels.read_field(names)
    assert (read.outside, read.unknown) == (outside, ())


def test_names_of_data_sets_mean_the_class_that_covers_them() -> None:
    table = labels.labels()
    wanted = {
        "dog": "Dog",
        "rooster": "Chicken, rooster",
        "crying_baby": "Baby cry, infant cry",
        "street_music": "Music",
        "gun_shot": "Gunshot, gunfire",
        "Dishes": "Dishes, pots, and pans",
        "Crash_cymbal": "Cymbal",
    }
    assert {name: table[labels.index_of(name)].name for name in wanted} == wanted
    assert set(labels.ALIASES.values()) <= {label.name for label in table}
    assert not any(labels.find(name) is not None for name in labels.ALIASES)


def test_labels_outside_of_the_classes_and_unknown_ones() -> None:
    read = labels.read_field("Dog,Screech,/m/0zzz9,Dogg,600", numbers=True)
    assert read == labels.LabelField((74,), ("Screech", "/m/0zzz9"), ("Dogg", "600"))
    # A number in a foreign column is an index of that data set, not of AudioSet.
    assert labels.read_field("Dog;137", numbers=False) == labels.LabelField((74,), (), ("137",))
    with pytest.raises(InputError, match=r"unknown label 'Screech': .* \(the nearest: "):
        labels.parse("Screech")


def test_the_nearest_names_are_listed() -> None:
    with pytest.raises(InputError, match=r"\(the nearest: Speech; "):
        labels.index_of("Spech")
    with pytest.raises(InputError, match=r"\(the nearest: Electric guitar"):
        labels.index_of("Eletric_guitar")
