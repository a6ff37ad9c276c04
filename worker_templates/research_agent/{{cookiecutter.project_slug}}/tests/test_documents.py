from pathlib import Path

import pytest

from steps.documents import MAX_PASSAGE_WORDS, load_folder, read_html, read_markdown, split_passages, split_sentences

PAGE = """<html><head><title>Cold &amp; warm</title><style>p {}</style></head><body><nav>Menu</nav>
<main><h1>Starts</h1><p>One <b>bold</b>
word.</p><ul><li>first<li>second</ul><table><tr><td>a</td><td>b</td></tr></table><pre>code()</pre></main>
<footer>Imprint</footer><script>alert(1)</script></body></html>"""


def test_html_becomes_titled_blocks_without_furniture_and_code():
    document = read_html(PAGE)

    assert document.title == "Cold & warm"
    assert document.text.split("\n\n") == ["# Starts", "One bold word.", "first", "second", "a b"]


def test_html_without_a_body_has_no_text():
    assert read_html("").text == ""


def test_markdown_loses_its_markup_and_front_matter():
    document = read_markdown("---\ntags: [x]\n---\n# Title\n\nA [link](http://x) and `code`.\n\n::: package.module\n")

    assert document.title == "Title"
    assert document.text == "# Title\n\nA link and code."


def test_passages_stay_below_the_limit_and_inside_their_section():
    long = " ".join(f"Sentence number {number} has exactly seven words." for number in range(40))
    passages = split_passages(
        read_markdown(f"# Doc\n\n{long}\n\n## Next\n\nA short section with enough words."), source="doc.md"
    )

    assert all(len(passage.text.split()) <= MAX_PASSAGE_WORDS for passage in passages)
    assert {passage.title for passage in passages} == {"Doc", "Doc: Next"}
    assert passages[-1].text == "A short section with enough words."


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Use a tool, e.g. A scraper. It works.", ["Use a tool, e.g. A scraper.", "It works."]),
        ("It takes 1.34 GB. 20 percent stays free.", ["It takes 1.34 GB.", "20 percent stays free."]),
        ("no full stop\nnext line", ["no full stop", "next line"]),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]):
    assert split_sentences(text) == sentences


def test_an_empty_knowledge_folder_says_which_variable_to_set(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="KNOWLEDGE_DIR"):
        load_folder(tmp_path)
