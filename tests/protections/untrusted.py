"""Files that strangers wrote: nothing of them runs, fills the machine, or is written elsewhere."""

from __future__ import annotations

from tests.protections import Protection

_FILES, _IMAGES = "tests/untrusted/test_strange_files.py", "tests/untrusted/test_strange_images.py"
_RECORDS, _FUZZ = "tests/untrusted/test_poisoned_records.py", "tests/fuzz/test_fuzz.py"
_PICKLES = f"{_FILES}::test_what_a_pickle_would_do_is_seen_before_anything_is_made"

PROTECTIONS = (
    Protection(
        promise="a checkpoint's pickle runs nothing, even with the digest that belongs to it",
        file="benchmark/pickled_file.py",
        removed='        return torch.load(stream, map_location="cpu", weights_only=True)\n',
        instead='        return torch.load(stream, map_location="cpu", weights_only=False)\n',
        test=f"{_FILES}::test_a_pickle_that_nobody_looked_through_still_runs_nothing",
    ),
    Protection(
        promise="a pickle names nothing but what files of weights are made of",
        file="benchmark/pickled_file.py",
        removed="        if name not in self.known and not _STORAGE.fullmatch"
        "(name) and not _DTYPE.fullmatch(name):\n",
        instead="        if False:\n",
        test=_PICKLES,
    ),
    Protection(
        promise="a pickle calls nothing that makes memory out of a number",
        file="benchmark/pickled_file.py",
        removed="        if called.name not in self.known:\n",
        instead="        if False:\n",
        test=_PICKLES,
    ),
    Protection(
        promise="a pickle's tuples in tuples are not hashed for ever",
        file="benchmark/pickled_file.py",
        removed="        if weight > MOST_WEIGHT:\n",
        instead="        if False:\n",
        test=_PICKLES,
    ),
    Protection(
        promise="a pickle's bytes are not doubled by encoding them",
        file="benchmark/pickled_file.py",
        removed='        if called.name == "_codecs.encode" and arguments.tex'
        'ts[1:] not in (("latin1",), ("latin-1",)):\n',
        instead="        if False:\n",
        test=_PICKLES,
    ),
    Protection(
        promise="what was looked through in an archive is what is read from it",
        file="benchmark/pickled_file.py",
        removed="    if len({member.filename.casefold() for member in members}) != len(members):\n",
        instead="    if False:\n",
        test=f"{_FILES}::test_two_members_of_one_name_are_refused",
    ),
    Protection(
        promise="no compressed weights swell",
        file="benchmark/pickled_file.py",
        removed="        if member.compress_type != zipfile.ZIP_STORED or mem"
        "ber.compress_size != member.file_size:\n",
        instead="        if False:\n",
        test=f"{_FILES}::test_a_checkpoint_that_swells_is_refused",
    ),
    Protection(
        promise="no tensor is larger than its file",
        file="benchmark/classifier_file.py",
        removed="    if max(value.nbytes, value.untyped_storage().nbytes()) > path.stat().st_size:\n",
        instead="    if False:\n",
        test=f"{_FILES}::test_a_tensor_larger_than_its_file_is_refused",
    ),
    Protection(
        promise="predictions that swell are refused",
        file="leaderboard/predictions.py",
        removed="            if unpacked > MOST_UNPACKED_BYTES:\n",
        instead="            if False:\n",
        test=f"{_FILES}::test_predictions_that_swell_are_refused",
    ),
    Protection(
        promise="no aliases: a billion laughs stay a line",
        file="protocols/reader.py",
        removed="        if isinstance(event, yaml.AliasEvent):\n",
        instead="        if False:\n",
        test=f"{_FILES}::test_strange_yaml_is_refused",
    ),
    Protection(
        promise="brackets in YAML nest no deeper than a protocol needs",
        file="protocols/reader.py",
        removed="            if depth > MOST_NESTED:\n",
        instead="            if False:\n",
        test=f"{_FILES}::test_nesting_ends_before_the_file_does",
    ),
    Protection(
        promise="no text of a protocol moves a terminal",
        file="protocols/reader.py",
        removed="            if any(shown(word) != word for word in text.split()):\n",
        instead="            if False:\n",
        test=f"{_RECORDS}::test_a_protocols_own_words_are_shown_as_text",
    ),
    Protection(
        promise="absurd sizes are refused before anything is made",
        file="protocols/frozen.py",
        removed="Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]\n",
        instead="Side = Annotated[int, Field(ge=1)]\n",
        test=f"{_FILES}::test_absurd_sizes_are_refused_before_anything_is_made",
    ),
    Protection(
        promise="a pipe or a device in a cluster file's place hangs nothing",
        file="benchmark/cluster_file.py",
        removed="        if path.exists() and not path.is_file():\n",
        instead="        if path.is_dir():\n",
        test=f"{_FILES}::test_a_device_is_no_cluster_file",
    ),
    Protection(
        promise="an error that quotes a stranger's file is plain text",
        file="protocols/errors.py",
        removed="        super().__init__(shown(str(message)))\n",
        instead="        super().__init__(str(message))\n",
        test=f"{_RECORDS}::test_an_error_that_quotes_a_strangers_file_is_plain_text",
    ),
    Protection(
        promise="no image calls Ghostscript",
        file="benchmark/image_files.py",
        removed="        return Image.open(source, formats=FORMATS)\n",
        instead="        return Image.open(source)\n",
        test=f"{_IMAGES}::test_no_picture_calls_ghostscript",
    ),
    Protection(
        promise="no image is decoded that states more pixels than any photograph has",
        file="benchmark/image_files.py",
        removed="            if opened.width * opened.height > MOST_PIXELS:\n",
        instead="            if False:\n",
        test=f"{_IMAGES}::test_a_size_is_refused_by_its_name_and_not_when_the_memory_is_gone",
    ),
    Protection(
        promise="a spreadsheet takes no text of a record for a formula",
        file="leaderboard/export.py",
        removed='    return f"\'{text}" if unicodedata.normalize("NFKC", text)'
        ".lstrip().startswith(_SIGNS) else text\n",
        instead="    return text\n",
        test=f"{_RECORDS}::test_every_form_of_a_formula_is_text",
    ),
    Protection(
        promise="a page of poisoned records runs nothing",
        file="leaderboard/page.py",
        removed="        autoescape=True,\n",
        instead="        autoescape=False,\n",
        test=f"{_RECORDS}::test_a_page_of_poisoned_records_runs_nothing_and_asks_nobody",
    ),
    Protection(
        promise="no file of a board turns the text around it",
        file="leaderboard/page.py",
        removed="        finalize=_shown,\n",
        instead="",
        test=f"{_RECORDS}::test_no_file_of_a_board_holds_what_a_terminal_acts_on",
    ),
    Protection(
        promise="a board's JSON moves no terminal",
        file="leaderboard/export.py",
        removed='    return re.sub(r"[^\\x20-\\x7e\\n]", _escaped, text)\n',
        instead="    return text\n",
        test=f"{_RECORDS}::test_a_terminal_shows_poisoned_records_and_does_nothing",
    ),
    Protection(
        promise="matplotlib reads no name as mathematics",
        file="leaderboard/figure_style.py",
        removed='    "text.parse_math": False,\n',
        instead="",
        test=f"{_RECORDS}::test_a_name_between_dollar_signs_is_no_mathematics",
    ),
    Protection(
        promise="LaTeX runs nothing of a record",
        file="leaderboard/latex.py",
        removed='    "\\\\": r"\\textbackslash{}",\n',
        instead="",
        test=f"{_RECORDS}::test_latex_acts_on_nothing_of_a_table",
    ),
    Protection(
        promise="Markdown links nowhere that a record says",
        file="leaderboard/markdown.py",
        removed='    return re.sub(r"([\\\\`*_\\[\\]|#~])", r"\\\\\\1", value)\n',
        instead="    return value\n",
        test=f"{_RECORDS}::test_markdown_of_poisoned_records_links_to_our_own_files_alone",
    ),
    Protection(
        promise="a bundle names no file but its cells' own",
        file="leaderboard/bundle.py",
        removed='    path: Annotated[str, Field(pattern=rf"{CELL_PATH}|{OWN_PATH}")]\n',
        instead="    path: str\n",
        test="tests/leaderboard/test_bundle_forgeries.py::"
        "test_a_manifest_of_another_format_or_with_a_strange_path_is_refused",
    ),
    Protection(
        promise="a member of a bundle has the header that `bundle` writes, and no other",
        file="leaderboard/bundle.py",
        removed='    return "" if block == member_header(member.name, size) else',
        instead='    return "" if True else',
        test="tests/leaderboard/test_bundle.py::test_every_field_of_a_header_counts",
    ),
    Protection(
        promise="a merge writes through no link in a cell's place",
        file="benchmark/merging.py",
        removed="        if folder.exists() and not folder.is_dir():\n",
        instead="        if False:\n",
        test="tests/benchmark/test_merge_command.py::test_links_and_files_where_folders_belong",
    ),
    Protection(
        promise="a record tells of its machine what an allow-list names",
        file="benchmark/provenance.py",
        removed='    found["cores"] = str(len(os.sched_getaffinity(0)))\n',
        instead='    found["cores"] = str(len(os.sched_getaffinity(0)))\n    found |= os.environ\n',
        test="tests/untrusted/test_secrets.py::test_no_secret_of_the_machine_is_in_what_leaves_it",
    ),
    Protection(
        promise="every damage to predictions is a user's error",
        file="leaderboard/predictions.py",
        removed="    except (*DAMAGED_ARRAY, KeyError, RuntimeError, zipfile."
        "BadZipFile, zlib.error) as error:\n",
        instead="    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:\n",
        test=f"{_FUZZ}::test_predictions_that_are_no_arrays_are_refused",
    ),
    Protection(
        promise="JSON nested without end is a damaged manifest",
        file="benchmark/data_manifest.py",
        removed="    except (ValueError, RecursionError):\n",
        instead="    except ValueError:\n",
        test=f"{_FUZZ}::test_nesting_that_no_reader_of_json_ends_is_refused",
    ),
)
