"""Mutations of what refuses bad input: files, records, and the places that commands write to."""

from __future__ import annotations

from mutations.kinds import of_room

RECORDS = (
    *of_room("data/sources", "data/test_sources",
           ("if len(found) < len(pairs):", "if False:", "the last of two keys taken in silence")),
    *of_room("types", "test_types",
           ('if rater == "":', "if False:", "a rater without a name"),
           ("if not criterion:", "if False:", "a criterion without a name")),
    *of_room("feedback/events", "feedback/test_feedback_store",
           ("if not criterion:", "if False:", "a criterion without a name, by way of the store")),
    *of_room("recipes/bandit", "recipes/test_bandit",
           ("    if not rows:\n", "    if False:\n", "an empty log taken for one that is held out"),
           ("if step + config.steps_per_round == total:", "if False:", "a rule that tells nothing apart learned from"),
           ("if step + config.steps_per_round == total:", "if True:", "a round that was alike by chance ends the run"),
           ("if not label.strip() or self.labels.count(label) > 1:", "if not label.strip():", "a label named twice"),
           ("if not label.strip() or self.labels.count(label) > 1:", "if self.labels.count(label) > 1:",
            "a label without a name")),
)  # fmt: skip
PLACES = (
    *of_room("files", "test_files",
           ("if path.samefile(Path(name).expanduser()):", "if path == Path(name).expanduser():",
            "an input replaced through a link"),
           ("if path.suffix.lower() in OTHER_KINDS:", "if False:", "JSON lines under the name of a table")),
    *of_room("rollout/generate", "test_cli",
           ("files.check_place(out, prompts)", "files.check_place(out)", "prompts replaced by samples")),
    *of_room("rollout/classify", "test_cli",
           ("files.check_place(out, source)", "files.check_place(out)", "texts replaced by their labels")),
    *of_room("reward/score", "test_cli",
           ("files.check_place(out, source, scorer)", "files.check_place(out, source)", "a scorer replaced by scores"),
           ("files.check_place(out, source, scorer)", "files.check_place(out, scorer)", "rows replaced by the best")),
    *of_room("recipes/evaluate", "evaluation/test_evaluate",
           ("places = [find_any(name) for name in config.models]",
            "places = [find_any(config.models[0]) for name in config.models]", "models not looked for beforehand")),
    *of_room("cli", "test_cli",
           ("    records = read_records(file, format)",
            "    Store.open(store).close()\n    records = read_records(file, format)",
            "an empty store left by an import that failed")),
    *of_room("feedback/transfer", "test_cli",
           ("refuse_inputs(Path(path), str(store.engine.url.database))", "pass", "a store replaced by its export")),
    *of_room("reward/label", "reward/test_label",
           ("    files.check_place(out, source)\n", "", "records taken for answers of the judge"),
           ("    done = _resume(out, set(digests))\n", "    done = _resume(out, set(digests))\n    _add(out, \"\")\n",
            "an empty file where nothing was answered")),
)  # fmt: skip
