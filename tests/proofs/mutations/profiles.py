"""Where a second of a step goes."""

from mutations.kinds import of_room

PROFILE = of_room(
    "training/attribution",
    "training/test_profile",
    ("            open_[-1].own -= span.end - span.start\n", "", "time inside an operator counted twice"),
    ("(open_[-1].phase, open_[-1].family) if open_", "(ELSEWHERE, open_[-1].family) if open_",
     "what a phase holds is not its own"),
    ("return BACKWARD if name.startswith(NODE) else None", "return None", "no backward pass"),
    ('removesuffix("Backward"), family)', 'removesuffix("Backward"))', "a kind lost one operator further in"),
    ("threads.pop(step.thread)", "threads[step.thread]", "the step's own thread beside itself"),
    ("max(span.start, step.start)", "span.start", "what was before the step is part of it"),
    ("min(span.end, step.end)", "span.end", "what came after the step is part of it"),
    ("(span.start, -span.end)", "(span.start, span.end)", "what begins together nested the wrong way"),
    ("room not in (\"aten\", \"mkldnn\") or operator in VIEWS", 'room not in ("aten",) or operator in VIEWS',
     "the packed products are Python's"),
    ("for kind in KINDS if (phase, kind) in sums", "for kind in KINDS[:-1] if (phase, kind) in sums",
     "Python is left out of the sum"),
    ("key=lambda item: -item[1][0])", "key=lambda item: item[1][0])", "the cheapest operators"),
) + of_room(
    "training/profile",
    "training/test_profile",
    ("profile_all_threads=True", "profile_all_threads=False", "no other thread is seen"),
    ("        phases.watch(None)\n", "", "names are watched for ever"),
    ("done < total and not (directory / \"profile.json\").exists()", "done < total", "a resumed run watched again"),
    ("self.cold = total - done == 1", "self.cold = False", "no profile of a last step"),
    ('took | {"cold": True}', 'took | {"cold": False}', "a cold step for a warm one"),
    ("        self.write(self.directory, self.figures)\n", "", "no page"),
) + of_room(
    "training/metrics",
    "training/test_profile",
    ("            self.profile.end()\n", "            pass\n", "a profile that a kill leaves on"),
    ('    @phase("log")\n', "", "the log has no phase"),
) + of_room(
    "phases",
    "training/test_profile",
    ("            with _watcher(name):\n                return function(*args, **kwargs)",
     "            return function(*args, **kwargs)", "nobody is told"),
    ("_NOBODY if _watcher is None else _watcher(PHASE + name)", "_NOBODY", "lines that are a phase in name alone"),
) + of_room(
    "evaluation/profile_page",
    "training/test_profile",
    ("spent / seconds", "spent", "seconds of the step, not of a second"),
    ("    second = 1000 / seconds\n", "    second = 1000.0\n", "bars that are not of a second"),
    ("< DISTURBED * seconds", "> DISTURBED * seconds", "a warning where nothing disturbs"),
    ("return write_profile if wanted else None", "return write_profile", "a profile that nobody asked for"),
)  # fmt: skip
