from benchmarks.trainers import Encodes
from tests.references.tiny import tiny_batch, tiny_model


def test_rows_are_counted_as_they_pass_the_towers():
    model = tiny_model()
    model(**tiny_batch())
    encodes = Encodes(model)
    for _ in range(2):
        model(**tiny_batch())
    assert dict(encodes) == {"vision_model": 14, "text_model": 12}
    assert encodes.per(10) == "1.4 images and 1.2 texts encoded"
