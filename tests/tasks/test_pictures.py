"""Images from data to token ids and pixels."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

Image = pytest.importorskip("PIL.Image")
import numpy as np  # noqa: E402
import torch  # noqa: E402

from unipo.chance import normal  # noqa: E402
from unipo.errors import DataError, MissingExtra  # noqa: E402
from unipo.starter.shapes import build_processor  # noqa: E402
from unipo.starter.tokenizer import build_tokenizer  # noqa: E402
from unipo.tasks.chat import encode_prompt, encode_prompts, encode_response  # noqa: E402
from unipo.tasks.dataset import Heldout, dataset_task, prompt_key  # noqa: E402
from unipo.tasks.fields import Fields  # noqa: E402
from unipo.tasks.pictures import Pictures, marked, open_picture, picture_key, plain  # noqa: E402
from unipo.tasks.rows import to_examples  # noqa: E402
from unipo.tasks.task import Example  # noqa: E402
from unipo.training.prompts import Prompt  # noqa: E402


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor()


@pytest.fixture
def red() -> Any:
    return Image.new("RGB", (32, 32), (255, 0, 0))


def as_bytes(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_comes_from_everything_that_data_holds(red: Any, tmp_path: Path) -> None:
    red.save(tmp_path / "red.png")
    raw = as_bytes(red)
    sources = (red, np.asarray(red), str(tmp_path / "red.png"), tmp_path / "red.png", raw, {"bytes": raw, "path": None})
    for source in sources:
        assert open_picture(source) == red
    assert open_picture(np.zeros((4, 4), dtype=np.uint8)).mode == "RGB"
    for bad, said in (
        (str(tmp_path / "blue.png"), "there is no image file"),
        (b"no png", "cannot|is not an image"),
        (3.0, "this one is a float"),
    ):
        with pytest.raises(DataError, match=said):
            open_picture(bad)
    assert picture_key(red) == picture_key(np.asarray(red))
    assert picture_key(red) != picture_key(Image.new("RGB", (32, 32), (254, 0, 0)))


def test_marks_say_where_the_images_are() -> None:
    assert marked("how many?", 2) == "<image><image>how many?"
    assert marked("is <image> as <image>?", 2) == "is <image> as <image>?"
    talk = [{"role": "system", "content": "look"}, {"role": "user", "content": "how many?"}]
    assert marked(talk, 1) == [talk[0], {"role": "user", "content": "<image>how many?"}]
    with pytest.raises(DataError, match="has 1 marks <image>, and there are 2 images"):
        marked("is <image>?", 2)


def test_token_ids_are_those_of_the_processor(processor: Any, red: Any) -> None:
    example = Example([{"role": "user", "content": "a<image>b"}], images=(red,))
    ids = encode_prompt(processor.tokenizer, example, processor=processor)
    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
            }
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    expected = processor(text=[text], images=[red], return_tensors="pt")
    assert ids == expected["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == 16
    pixels = Pictures((red,), processor.image_processor).pixels()
    assert torch.equal(pixels, expected["pixel_values"])
    assert torch.equal(plain(processor.image_processor, "black"), torch.tensor([-1.0, -1.0, -1.0]))
    assert len(Pictures((), processor.image_processor).pixels()) == 0
    assert encode_prompt(processor.tokenizer, Example("ab", images=(red,)), "never", processor=processor).count(
        processor.image_token_id
    ) == 16  # fmt: skip


def test_a_response_of_the_data_goes_on_after_the_images(processor: Any, red: Any) -> None:
    example = Example("how many?", images=(red,))
    ids = encode_prompt(processor.tokenizer, example, processor=processor)
    said = encode_response(processor.tokenizer, "2", example, ids, processor=processor)
    assert processor.tokenizer.decode(said) == "2<|end|>"


def test_prompts_with_and_without_images_side_by_side(processor: Any, red: Any) -> None:
    examples = [Example("how many?", images=(red,)), Example("how many?", id=1)]
    encoded = encode_prompts(processor.tokenizer, examples, processor=processor)
    assert [processor.image_token_id in ids for ids in encoded.ids] == [True, False]
    assert encoded.examples[0] is examples[0]
    assert Prompt(examples[0], ()).said == "<image>how many?"
    assert prompt_key("how many?", (red,)) != prompt_key("how many?")


def test_what_cannot_be_encoded_is_said(processor: Any, red: Any) -> None:
    with pytest.raises(DataError, match="this model reads text only"):
        encode_prompt(build_tokenizer(), Example("how many?", images=(red,)))
    with pytest.raises(DataError, match="contains the control token"):
        encode_prompt(processor.tokenizer, Example("<image> or <|end|>?", images=(red,)), processor=processor)
    with pytest.raises(DataError, match="contains the control token '<image>'"):
        encode_prompt(processor.tokenizer, Example("what is <image>?"), processor=processor)


# -- data files --------------------------------------------------------------------------------------
def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_images_of_a_file_are_found_beside_it(red: Any, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    red.save(tmp_path / "shown" / "1.png")
    rows = [{"question": f"what is it? {i}", "answer": "red", "image": "shown/1.png"} for i in range(4)]
    task = dataset_task(write(tmp_path, rows), heldout=Heldout(size=1))
    assert len(task.train) == 3
    assert task.train[0].images == (str(tmp_path / "shown" / "1.png"),)
    assert "images from 'image'" in task.description
    assert task.train[0].row["image"] == "shown/1.png"


def test_parts_of_messages_are_marks_and_images(red: Any, tmp_path: Path) -> None:
    red.save(tmp_path / "1.png")
    parts = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "what is it?"}]
    placed = [{"type": "text", "text": "what is "}, {"type": "image"}, {"type": "text", "text": "?"}]
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": parts}]}]
    (example,) = dataset_task(write(tmp_path, rows)).train
    assert example.prompt[0] == {"role": "user", "content": "<image>what is it?"}
    assert example.images == (str(tmp_path / "1.png"),)
    rows = [{"messages": [{"role": "user", "content": placed}], "images": ["1.png"]}]
    (example,) = dataset_task(write(tmp_path, rows)).train
    assert example.prompt[0]["content"] == "what is <image>?"
    assert len(example.images) == 1


def test_pixels_of_datasets_stay_out_of_the_row(red: Any) -> None:
    (example,) = to_examples([{"prompt": "what?", "images": [red]}]).examples
    assert example.images == (red,)
    assert "images" not in example.row
    assert to_examples([{"prompt": "what?", "image": red}], Fields(images="")).examples[0].images == ()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "what?", "image": "none.png"}, r"row 2: there is no image file .*none\.png"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "image": None}, "no image is given"),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "must be text or an image"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(row: dict[str, Any], said: str, red: Any, tmp_path: Path) -> None:
    red.save(tmp_path / "1.png")
    path = write(tmp_path, [{"prompt": "what?", "image": "1.png"}, row])
    with pytest.raises(DataError, match=said):
        dataset_task(path)
    assert sum(dataset_task(path, on_bad_row="skip").events.values()) == 1


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"unipo\[vision\]"):
        open_picture(base64.b64decode(""))


def test_noise_depends_on_the_draw_alone_and_has_the_strength_asked_for(processor: Any, red: Any) -> None:
    clean = Pictures((red, red), processor.image_processor)
    noisy = clean.noisier(0.1)
    assert torch.equal(noisy.pixels(7), noisy.pixels(7))
    assert not torch.equal(noisy.pixels(7), noisy.pixels(8))
    assert torch.equal(clean.pixels(7), clean.pixels(8))
    noise = noisy.pixels(7) - clean.pixels()
    assert not torch.equal(noise[0], noise[1])
    # black to white is 2 in this processor's scale
    assert float(noise.std()) == pytest.approx(0.2, rel=0.1)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.03)
    assert torch.isfinite(normal((100_000,), 3)).all()
