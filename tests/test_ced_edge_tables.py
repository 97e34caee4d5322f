"""Tables of data sets as they are published, in the folders as they are unpacked, and every dialect of CSV."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ced_edge.audio.clips import Clip, read_clips, read_manifest
from ced_edge.audio.tables import read_table
from ced_edge.errors import InputError
from ced_edge.labels import labels


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        write(folder / name, "")


def names_of(clip: Clip) -> list[str]:
    return [labels()[i].name for i in clip.labels or ()]


def test_esc50(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "ESC-50-master" / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "1-187207-A-20.wav,2,20,crying_baby,True,187207,A\n"
        "1-26806-A-1.wav,3,1,rooster,True,26806,A\n"
        "1-23996-A-35.wav,1,35,washing_machine,False,23996,A\n",
    )
    audio = path.parents[1] / "audio"
    touch(audio, "1-100032-A-0.wav", "1-187207-A-20.wav", "1-26806-A-1.wav")
    touch(audio, "1-23996-A-35.flac")  # converted since
    caplog.set_level(logging.INFO)
    clips = read_manifest(path)
    assert [(c.id, c.path, names_of(c), c.group) for c in clips] == [
        ("1-100032-A-0.wav", audio / "1-100032-A-0.wav", ["Dog"], "dog"),
        ("1-187207-A-20.wav", audio / "1-187207-A-20.wav", ["Baby cry, infant cry"], "crying_baby"),
        ("1-26806-A-1.wav", audio / "1-26806-A-1.wav", ["Chicken, rooster"], "rooster"),
        ("1-23996-A-35.wav", audio / "1-23996-A-35.flac", [], "washing_machine"),
    ]
    assert clips[3].labels is None  # `target` is an index of ESC-50, not of AudioSet
    assert caplog.messages == [
        f"{path}: the audio is in {audio}",
        f"{path}: 1 files are in another folder or format than it says",
        f"{path}: left out labels that are no AudioSet class, 1 in all: washing_machine (1)",
    ]
    assert [c.id for c in read_manifest(path, "2")] == ["1-187207-A-20.wav"]
    assert [c.group for c in read_manifest(path, "1,3")] == ["dog", "rooster", "washing_machine"]
    (tmp_path / "other").mkdir()
    assert read_manifest(path, audio_root=tmp_path / "other")[0].path == tmp_path / "other" / "1-100032-A-0.wav"


def test_urbansound8k(tmp_path: Path) -> None:
    path = write(
        tmp_path / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class\r\n"
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\r\n"
        "100263-2-0-117.wav,100263,58.5,62.5,1,5,2,children_playing\r\n"
        "101415-9-0-1.wav,101415,0.0,4.0,1,1,9,street_music\r\n",
    )
    audio = path.parents[1] / "audio"
    touch(audio / "fold5", "100032-3-0-0.wav")
    clips = read_manifest(path)
    assert [(c.path, names_of(c), c.group) for c in clips] == [
        (audio / "fold5" / "100032-3-0-0.wav", ["Bark"], "dog_bark"),
        (audio / "fold5" / "100263-2-0-117.wav", ["Children playing"], "children_playing"),
        (audio / "fold1" / "101415-9-0-1.wav", ["Music"], "street_music"),
    ]
    # Start and end are places in the recording at Freesound. The slice is a file of its own.
    assert all((c.start_s, c.stop_s) == (0.0, None) for c in clips)
    assert len(read_manifest(path, "5")) == 2
    assert read_manifest(path, audio_root=audio)[2].path == audio / "fold1" / "101415-9-0-1.wav"


def test_fsd50k(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "FSD50K.ground_truth" / "dev.csv",
        "fname,labels,mids,split\n"
        '64760,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music",'
        '"/m/02sgy,/m/0342h,/m/0fx80y,/m/04szw,/m/04rlf",train\n'
        '16399,"Male_speech_and_man_speaking,Speech,Human_voice","/m/05zppz,/m/09x0r,/m/09l8g",val\n',
    )
    audio = tmp_path / "FSD50K.dev_audio"
    touch(audio, "64760.wav", "16399.wav")
    guitar, speech = read_manifest(path)
    assert (guitar.path, speech.path) == (audio / "64760.wav", audio / "16399.wav")
    assert names_of(guitar) == [
        *("Music", "Musical instrument", "Plucked string instrument", "Guitar", "Electric guitar"),
    ]
    assert names_of(speech) == ["Speech", "Male speech, man speaking"]
    assert caplog.messages[-1].endswith("left out labels that are no AudioSet class, 1 in all: /m/09l8g (1)")
    assert [c.id for c in read_manifest(path, "val")] == ["16399"]
    # The same without the machine ids: the underscored names mean the same classes.
    path.write_text('fname,labels\n64760,"Electric_guitar,Guitar"\n16399,"Male_speech_and_man_speaking,Human_voice"\n')
    assert [names_of(c) for c in read_manifest(path)] == [
        ["Guitar", "Electric guitar"],
        ["Male speech, man speaking"],
    ]


def test_audioset_strong(tmp_path: Path) -> None:
    """Events of one segment become one clip. The segment is a file of its own, or a part of the whole recording."""
    path = write(
        tmp_path / "audioset_eval_strong.tsv",
        "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
        "b0RFKhbpFJA_30000\t0.000\t10.000\t/m/03m9d0z\n"
        "b0RFKhbpFJA_30000\t4.753\t5.720\t/m/05zppz\n"
        "s9d-2nhuJCQ_15000\t1.0\t2.0\t/t/dd00138\n"
        "b0RFKhbpFJA_30000\t5.100\t5.720\t/m/03m9d0z\n"
        "gone_0\t0\t1\t/m/09x0r\n",
    )
    touch(tmp_path, "Yb0RFKhbpFJA_30000_40000.wav", "s9d-2nhuJCQ.opus")
    assert read_manifest(path) == [
        Clip("b0RFKhbpFJA_30000", tmp_path / "Yb0RFKhbpFJA_30000_40000.wav", (1, 283)),
        Clip("s9d-2nhuJCQ_15000", tmp_path / "s9d-2nhuJCQ.opus", None, None, 15.0, 25.0, may_be_cut=True),
        Clip("gone_0", tmp_path / "gone.wav", (0,)),
    ]
    assert names_of(read_manifest(path)[0]) == ["Male speech, man speaking", "Wind"]


def test_dcase_weak_and_strong(tmp_path: Path) -> None:
    weak = write(
        tmp_path / "metadata" / "train" / "weak.tsv",
        "filename\tevent_labels\nY-00pbt6aJV8Y_350.000_360.000.wav\tBlender,Speech\nY-01f_10.000_20.000.wav\tDishes\n",
    )
    folder = tmp_path / "audio" / "train" / "weak"
    touch(folder, "Y-00pbt6aJV8Y_350.000_360.000.wav")
    first, second = read_manifest(weak)
    assert (first.path, second.path) == (folder / first.id, folder / second.id)
    assert (names_of(first), names_of(second)) == (["Speech", "Blender"], ["Dishes, pots, and pans"])
    strong = write(
        tmp_path / "metadata" / "validation" / "validation.tsv",
        "filename\tonset\toffset\tevent_label\n"
        "a.wav\t0.000\t1.500\tDog\n"
        "b.wav\t\t\t\n"
        "a.wav\t2.000\t9.999\tVacuum_cleaner\n"
        "a.wav\t3.000\t4.000\tDog\n",
    )
    assert [(c.id, names_of(c)) for c in read_manifest(strong)] == [("a.wav", ["Dog", "Vacuum cleaner"]), ("b.wav", [])]


def test_unknown_labels_are_counted_where_no_label_is_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "".join(f"{i}.wav,{'Dogg' if i % 2 else 'Music'};Screech\n" for i in range(6))
    path = write(tmp_path / "m.csv", "filename,labels\n" + rows)
    assert [c.labels for c in read_clips([path], None, None, labels_needed=False)] == [(137,), None] * 3
    assert caplog.messages == [f"{path}: left out labels that are no AudioSet class, 9 in all: Screech (6), Dogg (3)"]
    with pytest.raises(InputError, match=r"m\.csv line 3: unknown label 'Dogg': .*\(the nearest: Dog\)"):
        read_clips([path], None, None)


def test_a_file_of_an_own_manifest_is_taken_from_no_other_folder(tmp_path: Path) -> None:
    touch(tmp_path / "audio", "a.wav", "b.flac")
    path = write(tmp_path / "meta" / "train.csv", "filename,labels\na.wav,1\nb.wav,2\n")
    assert [c.path for c in read_manifest(path)] == [path.parent / "a.wav", path.parent / "b.wav"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiters_line_ends_and_byte_order_marks(tmp_path: Path, delimiter: str, end: str, mark: str) -> None:
    rows = [["labels", "filename"], ['"Male speech, man speaking;Dog"', "a.wav"], ["", ""], ["0", '"b""c\n\r, d.wav"']]
    lines = [delimiter.join(row) if any(row) else "" for row in rows]
    path = write(tmp_path / "m.txt", mark + end.join(lines) + end)
    assert [(r.line, r.name) for r in read_table(path, None).rows] == [(2, "a.wav"), (4, 'b"c\n\r, d.wav')]
    assert [c.labels for c in read_manifest(path)] == [(1, 74), (0,)]


NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda name: name == name.strip(" \t")
)


@given(
    names=st.lists(NAME, min_size=1, max_size=8, unique=True),
    indices=st.lists(st.sets(st.integers(0, 526), max_size=3), min_size=8, max_size=8),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    mark=st.sampled_from(["", "\ufeff"]),
    column=st.sampled_from(["filename", "fname"]),
)
def test_what_csv_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    indices: list[set[int]],
    delimiter: str,
    end: str,
    quoting: int,
    mark: str,
    column: str,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    # Before Python 3.13, csv.writer does not quote a line end that is not its own; QUOTE_ALL does.
    if any(set(name) & set("\r\n") for name in names):
        writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["labels", column])
    pairs = [(name, tuple(sorted(found))) for name, found in zip(names, indices, strict=False)]
    writer.writerows([";".join(map(str, found)), name] for name, found in pairs)
    path = write(tmp_path_factory.mktemp("table") / "any.csv", mark + text.getvalue())
    assert [(c.id, c.labels or ()) for c in read_manifest(path)] == pairs
