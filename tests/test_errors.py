"""Errors: the report they travel in, where they point, and what a caller is never shown."""

import copy
import json
import pickle

import pytest

from flashkit import errors
from flashkit.errors import (
    ErrorReport,
    FlashkitError,
    HandlerExit,
    InputError,
    JobFailed,
    OutputError,
    describe_exception,
    locate,
    user_traceback,
)

FULL = ErrorReport(
    code="input_invalid",
    message="`text` is missing",
    type="InputError",
    where="app.py:12 in shout",
    hint="send it",
    details={"errors": [{"field": "text"}]},
    request_id="job-1",
)
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FlashkitError)]


def _raise(exc):
    raise exc


def _raised(exc):
    with pytest.raises(type(exc)) as caught:
        _raise(exc)
    return caught.value


def test_a_report_survives_json():
    assert ErrorReport.from_job_error(FULL.to_json()) == FULL


def test_a_report_with_only_the_required_parts_is_a_small_object():
    report = ErrorReport(code="c", message="m")
    assert report.to_dict() == {"code": "c", "type": "FlashkitError", "message": "m"}
    assert ErrorReport.from_dict(report.to_dict()) == report


def test_an_empty_message_stays_in_the_object():
    assert ErrorReport(code="c", message="").to_dict()["message"] == ""


def test_unknown_keys_and_parts_of_wrong_type_are_ignored():
    report = ErrorReport.from_dict({"code": 7, "message": None, "where": 3, "details": "x", "later": True})
    assert report == ErrorReport(code="7", message="None")


def test_details_that_json_does_not_know_become_text():
    text = ErrorReport(code="c", message="m", details={"path": {1, 2}}).to_json()
    assert json.loads(text)["details"] == {"path": "{1, 2}"}


def test_a_message_with_half_a_character_can_be_sent():
    text = ErrorReport(code="c", message="file \udcff missing").to_json()
    assert json.loads(text.encode())["message"] == "file ? missing"


def test_the_error_of_a_plain_sdk_worker_is_understood():
    text = json.dumps(
        {
            "error_type": "<class 'shop.PaymentRefused'>",
            "error_message": "no money",
            "error_traceback": "Traceback…",
            "hostname": "pod-1",
        }
    )
    report = ErrorReport.from_job_error(text, request_id="job-1")
    assert (report.type, report.message, report.request_id) == ("PaymentRefused", "no money", "job-1")
    assert report.details == {"traceback": "Traceback…"}


@pytest.mark.parametrize("error", ["it broke", "[1, 2]", '{"reason": "x"}', "null", '"text"', "{"])
def test_any_other_error_text_is_the_message(error):
    report = ErrorReport.from_job_error(error)
    assert (report.code, report.message) == ("handler_error", error)


def test_an_error_that_came_as_an_object_is_read_like_its_text():
    assert ErrorReport.from_job_error(FULL.to_dict()) == FULL


def test_the_id_in_the_report_wins_over_the_one_of_the_reader():
    assert ErrorReport.from_job_error(FULL.to_json(), request_id="other").request_id == "job-1"


def test_rendering_puts_each_part_on_its_line():
    assert FULL.render().splitlines() == [
        "InputError: `text` is missing",
        "  at app.py:12 in shout",
        "  hint: send it",
        "  request: job-1",
    ]


def test_rendering_leaves_out_what_is_not_known():
    assert ErrorReport(code="c", message="m").render() == "FlashkitError: m"


def test_the_text_of_an_exception_is_its_message_and_hint():
    assert str(InputError("wrong", hint="do this")) == "wrong\n  hint: do this"
    assert str(InputError("wrong")) == "wrong"


def test_an_exception_built_from_a_report_keeps_every_part():
    error = JobFailed.from_report(FULL)
    assert isinstance(error, JobFailed)
    assert error.report is FULL
    assert str(error) == "`text` is missing\n  hint: send it"
    assert error.args == ("`text` is missing",)


def test_a_subclass_with_other_arguments_can_be_built_from_a_report():
    class PageMissing(InputError):
        def __init__(self, url, status):
            super().__init__(f"{url} answered {status}")

    assert PageMissing.from_report(FULL).report is FULL
    assert PageMissing("u", 404).report.message == "u answered 404"


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copied_exception_keeps_its_report(duplicate):
    error = duplicate(InputError("wrong", hint="h", details={"a": 1}))
    assert error.report == InputError("wrong", hint="h", details={"a": 1}).report


@pytest.mark.parametrize("cls", CLASSES)
def test_every_exception_has_a_code_of_its_own(cls):
    assert [other for other in CLASSES if other.code == cls.code] == [cls]
    assert cls("m").report.code == cls.code
    assert cls("m").report.type == cls.__name__


def test_a_users_exception_is_described_with_its_type_message_and_line():
    def broken():
        return {}["key"]

    with pytest.raises(KeyError) as caught:
        broken()
    report = describe_exception(caught.value, request_id="job-1")
    assert (report.code, report.type, report.message) == ("handler_error", "KeyError", "'key'")
    assert report.where == f"test_errors.py:{broken.__code__.co_firstlineno + 1} in broken"
    assert report.request_id == "job-1"


def test_an_exception_without_a_message_shows_its_name():
    assert describe_exception(AssertionError()).message == "AssertionError()"


def test_an_exception_whose_text_raises_is_still_described():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    report = describe_exception(_raised(Unprintable()), with_traceback=True)
    assert report.type == "Unprintable"
    assert "cannot be shown" in report.message


def test_a_traceback_is_added_only_when_asked_for():
    error = _raised(ValueError("no"))
    assert describe_exception(error).details == {}
    assert "ValueError: no" in describe_exception(error, with_traceback=True).details["traceback"]


def test_a_flashkit_error_is_described_as_it_is():
    error = _raised(OutputError("too big", hint="less", details={"size": 1}))
    report = describe_exception(error, request_id="job-1")
    assert (report.code, report.hint, report.details) == ("output_invalid", "less", {"size": 1})
    assert report.where is not None


def test_the_place_is_the_users_line_and_not_the_librarys():
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert locate(caught.value.__traceback__).startswith("test_errors.py:")


def test_an_exception_that_was_never_raised_has_no_place():
    assert locate(None) is None
    assert describe_exception(ValueError("x")).where is None


def test_the_place_of_a_syntax_error_is_the_line_that_does_not_parse():
    with pytest.raises(SyntaxError) as caught:
        compile("x = 1\ny = (\n", "/apps/my_app.py", "exec")
    assert describe_exception(caught.value).where == "my_app.py:2"


def test_a_file_beside_the_package_whose_name_starts_alike_is_user_code():
    package = errors._PACKAGE_ROOT.rstrip("/")
    code = compile("raise ValueError('x')", f"{package}_demo.py", "exec")
    with pytest.raises(ValueError, match="x") as caught:
        exec(code, {})
    assert "flashkit_demo.py:1" in (locate(caught.value.__traceback__) or "")


def test_a_traceback_starts_at_user_code_and_keeps_the_cause():
    def broken():
        try:
            json.loads("{")
        except ValueError as exc:
            raise RuntimeError("outer") from exc

    with pytest.raises(RuntimeError) as caught:
        broken()
    text = user_traceback(caught.value)
    assert "RuntimeError: outer" in text
    assert "JSONDecodeError" in text


def test_the_error_of_an_exit_points_at_the_exit():
    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        leave()
    error = HandlerExit.from_exit(caught.value)
    assert error.report.details == {"exit_code": 3}
    assert describe_exception(error).where.endswith("in leave")
