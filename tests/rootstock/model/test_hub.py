"""A model's folder is what the Hugging Face Hub takes: uploaded as it is, with a card that the Hub can read."""

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

import rootstock
from tests.hub import hub
from tests.small_dataset import picture

pytestmark = pytest.mark.parametrize("evaluated", ["finetuned"], indirect=True, scope="session")


def test_a_folder_that_was_uploaded_is_a_model_there_too(evaluated, tmp_path):
    folder = evaluated[1] / "model"
    with hub() as there:
        api = huggingface_hub.HfApi(endpoint=there.address, token="hf_secret")
        api.create_repo("me/shapes")
        api.upload_folder(repo_id="me/shapes", folder_path=folder)
    uploaded = there.repositories["me/shapes"]
    assert uploaded.keys() == {path.name for path in folder.iterdir()}
    for name, content in uploaded.items():
        (tmp_path / name).write_bytes(content)
    photo = picture("rings", 3)
    here, copied = (rootstock.load_model(place).predict(photo) for place in (folder, tmp_path))
    assert here == copied


def test_its_card_tells_the_hub_what_it_is_and_how_good(evaluated):
    card = ModelCard.load(evaluated[1] / "model" / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "rootstock")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured.keys() == {"accuracy", "f1"} and all(0 <= value <= 1 for value in measured.values())
    assert card.data.eval_results[0].dataset_name == "field, studio"
    assert card.text.strip().startswith("# shufflenet")
