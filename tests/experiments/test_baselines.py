"""Every method through the one face, on a small random target: what it keeps, what it costs, what it must equal."""

import jax
import numpy as np
import pytest
import safetensors.numpy

import d2l
from d2l.data.niah import needle_at
from d2l.data.selfgen.config import SelfgenConfig
from d2l.errors import UserError
from d2l.experiments.baselines import distillation, generative_adapter, text_to_lora
from d2l.experiments.baselines.doc_to_lora import united
from d2l.experiments.baselines.face import NotRun
from d2l.experiments.baselines.forced import Forced
from d2l.experiments.baselines.in_context import cut_middle
from d2l.experiments.baselines.lora import Lesson, LoraTrainer, LoraTraining
from d2l.experiments.baselines.methods import METHODS, make_method
from d2l.hypernet.hypernet import init_hypernet
from d2l.hypernet.store import save_hypernet
from d2l.target.weights import load_target
from tests.conftest import hypernet_config

QUESTION = "What is the special magic number?"
# The small window has no room to ask for questions, and llmlingua is an extra.
RUNNABLE = [name for name in METHODS if name not in ("cd_generated", "llmlingua2")]


@pytest.fixture(scope="module")
def model(target_folder, tmp_path_factory):
    target = load_target(target_folder)
    config = hypernet_config(target.config)
    folder = tmp_path_factory.mktemp("hyper") / "h"
    about = {"target_name": target.name, "target_hash": target.weights_hash, "card": {"max_chunk_len": 40}}
    save_hypernet(folder, config, init_hypernet(config, 0), **about)
    return d2l.load(target_folder, folder)


@pytest.fixture(scope="module")
def needle(model):
    return needle_at(0, 0, model.tokenizer, 90, 100)


@pytest.fixture(scope="module")
def options(model, tmp_path_factory):
    """What makes a method small, and random weights for those that have none."""
    folder, config = tmp_path_factory.mktemp("weights"), model.target.config
    _random(folder / "adapter", generative_adapter.weight_shapes(config, ["o_proj"], 3, 2))
    _random(folder / "lora", text_to_lora.weight_shapes(config, ["q_proj"], 5, 2))
    sizes = {"modules": ("o_proj",), "inner": 3, "rank": 2, "chunk_tokens": 50}
    return {
        "cd_oracle": {"epochs": 3, "rank": 2},
        "generative_adapter": {"weights": str(folder / "adapter")} | sizes,
        "text_to_lora": {"weights": str(folder / "lora"), "modules": ("q_proj",), "latent": 5, "rank": 2},
    }


def _random(path, shapes):
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_method_answers_and_tells_what_it_cost(model, needle, options, name):
    method = make_method(model, name, 6, options.get(name, {}))
    first, second = method.answer([needle.document], [QUESTION, needle.question])
    for answer in (first, second):
        assert len(answer.tokens) <= 6 and answer.text == model.tokenizer.decode(answer.tokens).strip()
        assert answer.update.seconds > 0 and answer.answer.seconds >= answer.first_token_seconds > 0
        assert answer.answer.peak_bytes >= 0 and answer.update.peak_bytes >= 0
        assert answer.kv_bytes >= model.generator.cache_nbytes(answer.prompt_tokens) > 0
        assert (answer.adapter_bytes > 0) == method.adapts
    assert first.update == second.update
    with pytest.raises(UserError, match="document is empty"):
        method.answer([" "], [QUESTION])
    with pytest.raises(UserError, match="question is empty"):
        method.recall(method.remember([needle.document], [QUESTION]), first.update, " ")


@pytest.mark.parametrize("name", ["in_context", "d2l", "kv_compaction"])
def test_a_reply_that_is_begun_goes_on(model, needle, name):
    """By each method as if it had begun it itself; logits of what follows too."""
    method = make_method(model, name, 6, {})
    memory, update = method.update([needle.document], [QUESTION])
    whole = method.recall(memory, update, QUESTION)
    assert len(whole.tokens) > 2
    begun = memory.begun(whole.tokens[:2])
    rest = method.recall(begun, update, QUESTION)
    assert rest.tokens[:4] == whole.tokens[2:] and rest.prompt_tokens == whole.prompt_tokens + 2
    forced = Forced(model)
    np.testing.assert_allclose(
        forced.logits(begun, QUESTION, [5, 6]),
        forced.logits(memory, QUESTION, [*whole.tokens[:2], 5, 6])[2:],
        rtol=1e-4,
        atol=1e-4,
    )


def tokens_of(model, name, documents, **options):
    return make_method(model, name, 8, options).answer(documents, [QUESTION])[0]


def test_a_cache_that_keeps_all_is_in_context(model, needle):
    """Also where the document is repeated in pieces; with less, exactly what is left out is saved."""
    plain = tokens_of(model, "in_context", [needle.document])
    method = make_method(model, "kv_compaction", 8, {"keep": 500})
    memory, update = method.update([needle.document], [QUESTION])
    kept = method.recall(memory, update, QUESTION)
    assert plain.tokens == kept.tokens and plain.kv_bytes == kept.kv_bytes
    forced = Forced(model)
    whole = make_method(model, "in_context", 8, {}).remember([needle.document], [])
    np.testing.assert_allclose(
        forced.logits(whole, QUESTION, [5, 6, 7]), forced.logits(memory, QUESTION, [5, 6, 7]), rtol=1e-4, atol=1e-4
    )
    few = tokens_of(model, "kv_compaction", [needle.document], keep=40)
    saved = needle.length + len(model.tokenizer.turn_wrapper[0]) - 40
    assert plain.kv_bytes - few.kv_bytes == model.generator.cache_nbytes(saved)


def test_a_compacted_cache_has_the_bytes_of_the_adapter(model, needle):
    adapter, cache = (tokens_of(model, name, [needle.document]) for name in ("d2l", "kv_compaction"))
    question = len(model.tokenizer.encode("\n\n" + QUESTION)) + len(model.tokenizer.turn_wrapper[1])
    kept = cache.kv_bytes - model.generator.cache_nbytes(question)
    assert adapter.adapter_bytes - model.generator.cache_nbytes(1) < kept <= adapter.adapter_bytes


def test_documents_too_long_lose_their_middle(model):
    assert cut_middle([*range(10)], 5) == ([0, 1, 2, 8, 9], 5) and cut_middle([1, 2], 2) == ([1, 2], 0)
    long = needle_at(0, 0, model.tokenizer, 700, 720)
    answer = tokens_of(model, "in_context", [long.document])
    window = model.target.config.max_position_embeddings
    assert answer.prompt_tokens == window - 8
    assert answer.cut_tokens == long.length - (window - 8 - len(model.tokenizer.document_turn("", QUESTION)))
    with pytest.raises(UserError, match="question fills the window"):
        make_method(model, "in_context", 8, {}).answer([long.document], ["sky " * 600])


def test_several_documents_are_one_adapter(model):
    texts = ["The grass is green. Here we go. " * 4, "The special magic number is 0042."]
    bias = model.hypernet.config.rank
    both, one, two = (united(model.internalize(t), bias) for t in (texts, texts[:1], texts[1:]))
    assert both.num_contexts == 1 and both.rank == one.rank + two.rank - bias
    for name, ab in both.factors.items():
        for key, a in ab.items():
            parts = [one.factors[name][key][:, :, :-bias], two.factors[name][key]]
            np.testing.assert_allclose(a, np.concatenate(parts, axis=2), rtol=1e-5, atol=1e-6)


def test_distillation_learns_what_the_teacher_says(model):
    """From a teacher that is sure of other tokens than the target would say."""
    prompt = model.tokenizer.user_turn(QUESTION)
    response = [30, 31, 32, model.tokenizer.eos_ids[0]]
    top = np.array(response, np.int32)[:, None], np.zeros((4, 1), np.float32)
    lessons = [Lesson(prompt, response, top), Lesson(prompt[:-1], response, top)]
    trainer = LoraTrainer(model, LoraTraining(epochs=60, rank=4, batch=1, lr=1e-2))
    adapter, losses = trainer.train(lessons)
    assert len(losses) == 120 and losses[-1] < 0.2 * losses[0]  # unit embeddings: p = 0.43 is the most there is
    assert model.generate_ids([prompt], adapter, max_new_tokens=8) == [response[:-1]]
    assert trainer.train(lessons, steps=1)[1] == losses[:1]
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(adapter.factors))


def test_questions_are_asked_again_where_none_is_well_formed(monkeypatch):
    asked = []

    def replies(*, after):
        def ask(chat, read, texts, config, rng, dropped):
            asked.append(config.question_temperature)
            return [["Who is it?"] if len(asked) > after else []], 3

        return ask

    monkeypatch.setattr(distillation, "ask_questions", replies(after=2))
    assert distillation._ask(None, None, "A page.", SelfgenConfig(), np.random.default_rng(0)) == ["Who is it?"]
    assert asked == [0.0, *distillation.RETRIES[:2]]
    monkeypatch.setattr(distillation, "ask_questions", replies(after=99))
    with pytest.raises(UserError, match="asked for questions about the document 6 times"):
        distillation._ask(None, None, "A page.", SelfgenConfig(), np.random.default_rng(0))


def test_questions_need_room_and_a_number(model, needle):
    with pytest.raises(UserError, match="no room for a document beside the questions"):
        make_method(model, "cd_generated", 8, {"questions": 2}).remember([needle.document], [QUESTION])
    with pytest.raises(UserError, match="questions is 0"):
        make_method(model, "cd_generated", 8, {"questions": 0})


def test_what_is_out_of_reach_is_not_run(model, target_folder, options):
    for name in ("text_to_lora", "generative_adapter"):
        with pytest.raises(NotRun, match="no weights of"):
            make_method(model, name, 8, {})
        with pytest.raises(UserError, match="lacks or has too many"):
            make_method(model, name, 8, options[name] | {"modules": ("v_proj",)})
    with pytest.raises(UserError, match="asks for"):
        make_method(model, "text_to_lora", 8, options["text_to_lora"] | {"rank": 3})
    bare = d2l.load(target_folder)
    for name in ("d2l", "kv_compaction"):
        with pytest.raises(NotRun, match="hypernetwork"):
            make_method(bare, name, 8, {})
    with pytest.raises(UserError, match="keep is 0"):
        make_method(model, "kv_compaction", 8, {"keep": 0})
