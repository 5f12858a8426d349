"""Where a final answer is found: every rule by its own examples, and what is none."""

import random
import time

import pytest

from jaxs1.tasks.answers import WINDOW, final_answer, stripped


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # what stands around it: punctuation, emphasis, math delimiters
        ("Answer: 42.", "42"),
        ("Answer: 42 .", "42"),
        ("Answer: 42,", "42"),
        ("Answer: 42;", "42"),
        ("Answer: 42!", "42"),
        ("Answer: 42。", "42"),
        ("Answer: **42**.", "42"),
        ("Answer: `42`", "42"),
        ('Answer: "42".', "42"),
        ("Answer:42", "42"),
        ("__42__", "42"),
        ("**42**", "42"),
        ("Answer: $42$.", "42"),
        ("Answer: $$42.$$", "42"),
        (r"Answer: \(42\).", "42"),
        (r"Answer: \[42.\]", "42"),
        (r"Answer: 42\\", "42"),
        (r"Answer: \,42\;", "42"),
        ("Answer:\u00a042\u00a0", "42"),
        ("Answer: \uff14\uff12", "42"),
        ("Answer: \u221242", "-42"),
        (r"So \boxed{42.}", "42"),
        (r"So \boxed{42,}.", "42"),
        (r"$\boxed{42}$.", "42"),
        (r"\(\boxed{42}\)", "42"),
        (r"\boxed{\text{(C)}}", "(C)"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\boxed{x = 42}", "x = 42"),
        (r"\boxed{\displaystyle\frac{1}{2}}", r"\frac{1}{2}"),
        ("(1,2).", "(1,2)"),
        ("12 apples.", "12 apples"),
        ("Tuesday.", "Tuesday"),
        (r"\$5.", r"\$5"),
        (r"Answer: \$18.90.", r"\$18.90"),
        (r"\boxed{5!}", "5!"),  # a factorial
        (r"Answer: \{1,2\}.", r"\{1,2\}"),
        # boxes
        (r"\boxed{1} no: \boxed{2}", "2"),
        (r"\boxed 42", "42"),
        (r"$\boxed 42$.", "42"),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed {42}", "42"),
        ("\\boxed{\n42\n}", "42"),
        (r"\fbox{42}", "42"),
        (r"\boxed{\left\{ a_{1} \right\}}", r"\left\{ a_{1} \right\}"),
        (r"put it into \boxed{}: \boxed{42}", "42"),
        (r"Both \boxed{1} and \boxed{2} solve it.", "1, 2"),
        (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1, 2"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1, 2, 3"),
        (r"\boxed{1}\text{ and }\boxed{2}", "1, 2"),
        (r"\(x_1 = \boxed{1}\), \(x_2 = \boxed{2}\)", "1, 2"),
        ("\\boxed{2}\n\n\\boxed{2}", "2"),
        (r"\boxed{2} is wrong and \boxed{3} is right", "3"),
        # four hashes: a heading, or the end of a solution of GSM8K
        ("\\boxed{42}\n\n#### Note\nThis holds for all n.", "42"),
        ("\\boxed{42}\n#### Why\nSo it is.", "42"),
        ("\\boxed{42}\n\n#### 1. Check\nIt is 7.", "42"),
        ("\\boxed{42}\n#### Step 2", "42"),
        ("\\boxed{7}\n#### Remark\nA frequent wrong answer is 5.", "7"),
        ("#### Solution\n\n6*7\n\n#### Answer\n\n42", "42"),
        ("#### 5\nand 6*7 is\nmore", None),
        ("steps\n#### 42", "42"),
        ("steps\n#### -1,000.\n", "-1,000"),
        ("steps #### 42", "42"),
        ("steps\n#### \\frac{1}{2}", r"\frac{1}{2}"),
        ("\\boxed{42}\n#### 43", "43"),
        # stated
        ("We sum up.\n\n**Answer:**\n\n42", "42"),
        ("**Answer**: 42", "42"),
        ("**Answer: 42**", "42"),
        ("- **Answer:** 42", "42"),
        ("Answer (in cm): 42", "42"),
        ("Answer:\n\\[\n42\n\\]", "42"),
        ("Answer:\n\n```\n42\n```", "42"),
        ("So x = 42.\n\n**Final Answer**\n\n$$42$$", "42"),
        ("So.\n\n### Final Answer\n42", "42"),
        ("answer: 42", "42"),
        ("ANSWER: 42", "42"),
        ("Ans: 42", "42"),
        ("<answer>\n42\n</answer>\nbye", "42"),
        ("\u7b54\u6848\uff1a42", "42"),
        ("\u56e0\u6b64\u7b54\u6848\u662f $42$\u3002", "42"),
        ("We get 42 apples.\n\nThe answer is 42.", "42"),
        ("The final answer is: $42$.", "42"),
        ("The answer is therefore 42.", "42"),
        ("The answer to the question is 42.", "42"),
        ("So the correct answer is (C).", "(C)"),
        ("Thus 42 is the answer.", "42"),
        ("Final Answer: The final answer is $42$. I hope it is correct.", "42"),
        ("Final Answer: The largest $n$ is 42.", "42"),
        ("Answer: $42$, since $6*7=42$", "42"),
        ("Answer: 42 (six times seven)", "42"),
        ("Answer: $x=1$ or $x=2$", "x=1, x=2"),
        ("Answer: 41? No.\nAnswer: 42", "42"),
        ("Answer: 42\n\nWhy: the answer follows from the table.", "42"),
        ("Thus the answer is Evelyn.", "Evelyn"),
        # a box and a statement
        ("In \\boxed{41} we err.\nFinal Answer: 42", "42"),
        ("\\boxed{41}\n\nThe answer is 42.", "42"),
        ("Answer: 41 is a guess,\nso \\boxed{42}", "42"),
        ("Answer: The result is \\boxed{42}, as\nwanted.", "42"),
        ("\\boxed{42}\n\nThe answer is correct.", "42"),
        ("\\boxed{42}\nThis answer is obtained by adding 3 and 4.", "42"),
        ("\\boxed{42}. If n were odd, the answer is 5.", "42"),
        ("\\boxed{42}\n\nNote: many say the answer is 41.", "42"),
        # alone
        ("we add.\n\n**42**", "42"),
        ("we add.\n\n$$\\frac{1}{2}$$", r"\frac{1}{2}"),
        ("we add.\n\nx = 42", "x = 42"),
        # none
        ("no\nanswer", None),
        ("a proof\nof two lines", None),
        ("Thus\n\\[ a \\le b \\]", None),
        ("Thus\n$$a = b$$", None),
        ("and so on.\n\n$\\blacksquare$", None),
        ("half a \\boxed{4", None),
        ("\\boxed{}", None),
        ("Answer:", None),
        ("  ", None),
    ],
)
def test_final_answer(text, answer):
    if text == "Answer:":
        assert final_answer(text) in (None, "Answer")
    else:
        assert final_answer(text) == answer


def test_what_is_stripped_is_stripped():
    """Twice is once, over texts of all that surrounds answers."""
    parts = [
        *[r"**", r"$", r"\(", r"\)", r".", r",", r"42", r"\text{", r"}", r"{", r"_", r"`", r"\,"],
        " ",
        "\n",
    ]
    rng = random.Random(0)
    for _ in range(3000):
        once = stripped("".join(rng.choices(parts, k=rng.randint(1, 8))))
        assert stripped(once) == once, once


@pytest.mark.parametrize(
    "text",
    ["#" * 200_000, "the answer is not clear, " * 8000, "\\boxed{1 " * 20_000, "." * 200_000 + "x",
     "\\[ x " * 30_000 + "\ny", "\\boxed{1} and " * 20_000, "Answer:\n" * 20_000],
)  # fmt: skip
def test_a_model_that_repeats_itself_costs_no_minutes(text):
    start = time.process_time()
    answer = final_answer(text)
    assert time.process_time() - start < 5
    assert answer is None or len(answer) <= WINDOW or answer == text.strip()
