"""Which answers are equal: spellings of one value, near-misses, and math-verify's own cases."""

import json
import random

import pytest

from benchmarks.grading import HERE, right
from benchmarks.grading_cases import spellings
from benchmarks.grading_near_misses import near_misses
from jaxs1.tasks.expressions import LONGEST, number, same_expression
from tests.tasks.golds import GOLDS

#: Answers that say the same as the gold one behind the bar.
EQUAL = r"""
42. | 42
42 , | 42
\text{42}; | 42
12 apples | 12 apples.
12 | 12 apples.
\$5. | 5
1,234 | 1234
1{,}234 | 1234
1\,234 | 1234
1 234 | 1234
10,\!080 | 10080
+7 | 7
- 7 | -7
007 | 7
7.0 | 7
1/2 | \frac{1}{2}
\frac12 | 0.5
.5 | \tfrac12
½ | 1/2
0.333333 | 1/3
1 4/5 | 9/5
1\frac{4}{5} | 1.8
137 \frac{1}{2} | 137.5
3e5 | 300000
6.72 \times 10^{-5} | .0000672
50\% | 0.5
50 percent | 50\%
28 | 28\%
90° | 90^\circ
90 degrees | 90
\$18.90 | 18.9
18.90 dollars | \$18.90
864 square inches | 864 \mbox{ inches}^2
864 in² | 864 \mbox{ inches}^2
15 | 15\mbox{ cm}^2
60 miles per hour | 60 \text{ mph}
52 | 52_8
52 base 8 | 52_{8}
52_{\text{eight}} | 52_8
C | \text{(C)}
\textbf{(C)} | \text{(C)}
\textbf{(C) } 12 | \text{(C)}
East | \text{east}
an ellipse | \text{ellipse}
no solution | No solution.
-5i+6 | 6 - 5i
6-5\mathrm{i} | 6 - 5i
\sqrt{242} | 11\sqrt2
11√2 | 11\sqrt{2}
11*sqrt(2) | 11\sqrt2
15.556349 | 11\sqrt2
\frac{1}{\sqrt{3}} | \frac{\sqrt{3}}{3}
6.283185 | 2\pi
2^10 | 1024
ab+2a+5b+10 | (a+5)(b+2)
0.5x+3 | \frac{x}{2}+3
\frac{\cos x}{\sin x} | \cot x
7, 5, 3 | 3, 5, 7
3, 5 and 7 | \{3,5,7\}
x=3 or x=5 or x=7 | 3,5,7
1.5, \frac{3}{2} | 3/2
1+\sqrt{19}, 1-\sqrt{19} | 1 \pm \sqrt{19}
x = 1 ± √19 | 1 \pm \sqrt{19}
(6, 31, -1) | (6,31,-1)
6,31,-1 | (6,31,-1)
(p,q,r) = (6,31,-1) | (6,31,-1)
x = 3, y = 4 | (3,4)
\langle 1,2 \rangle | (1,2)
(1/5, -18/5) | \begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}
\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix} | \begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}
3 < x \le 4 | (3,4]
4 \geq x > 3 | (3,4]
x \le 0 | (-\infty, 0]
(-oo, 0] | (-\infty, 0]
(5, +\infty) | x > 5
(9,36) \cup (0,9) | (0,9) \cup (9,36)
(0,36) \setminus \{9\} | (0,9) \cup (9,36)
x < 2 or x > 3 | (-\infty, 2) \cup (3, \infty)
[-2,7] | x \in [-2,7]
\mathbb{R} | (-\infty,\infty)
\varnothing | \emptyset
5 | x=5
x=5 | 5
m+n=33 | 33
2x+3 | y = 2x + 3
y-2x-3=0 | y = 2x + 3
-5x+7y-11z-4=0 | 5x - 7y + 11z + 4 = 0
\frac{1}{3} \approx 0.33 | 1/3
\\frac{1}{2} | \frac{1}{2}
"""
#: Answers that say something else.
DIFFERENT = r"""
43 | 42
4.2 | 42
2t | 2
5m | 5
2x | 2
5! | 5
42.001 | 42
7 3 | 73
1.234 | 1234
1080 | 10,\!080
100,200 | 100, 200
0.33 | 1/3
0.3333 | 1/3
0.0000671 | .0000672
0.000067 | .0000672
1 4/5 | 1
\frac{4}{5} | 1\frac{4}{5}
14/5 | 1\frac{4}{5}
2/1 | 1/2
0.5 | 50
5 | 50\%
3.14 | \pi
6.28 | 2\pi
\frac{\pi}{2} | 90^\circ
90 \text{ cm} | 90^\circ
36^\circ | \$36
18.90 cents | \$18.90
864 inches | 864 \mbox{ inches}^2
864 \text{ feet}^2 | 864 \mbox{ inches}^2
60 km/h | 60 mph
3 hours | 3 \text{ minutes}
52_9 | 52_8
42 | 52_8
52_8 | 52
(B) | \text{(C)}
seat | \text{east}
circle | \text{ellipse}
6+5i | 6 - 5i
3r^2 | 3R^2
R-r | r-R
11\sqrt{3} | 11\sqrt2
15.56 | 11\sqrt2
x^2 | x_2
3, 5 | 3, 5, 7
3, 5, 7, 9 | 3, 5, 7
(-2,1) | 1,-2
(2,1) | (1,2)
\{1,2\} | (1,2)
[1,2] | (1,2)
(1,2] | (1,2)
(y,x) = (1,2) | (x,y) = (1,2)
1+\sqrt{19} | 1 \pm \sqrt{19}
\begin{pmatrix} 1 & 2 \end{pmatrix} | \begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 2 \\ 1 \end{pmatrix}
[3,4] | (3,4]
x < 0 | (-\infty, 0]
(0,36) | (0,9) \cup (9,36)
(0,9) \cap (9,36) | (0,9) \cup (9,36)
y = 5 | x=5
2x+3=0 | y = 2x + 3
5x - 7y + 11z + 4 = 0 | 0
y = 2x - 3 | y = 2x + 3
5x - 7y + 11z + 4 | 5x - 7y + 11z + 4 = 0
x \neq 5 | 5
x > 5 | 5
1/0 | 0
eighteen | 18
"""


def pairs(text):
    return [tuple(x.strip() for x in line.split(" | ")) for line in text.strip().splitlines()]


@pytest.mark.parametrize(("given", "gold"), pairs(EQUAL))
def test_equal(given, gold):
    assert right(given, gold) and right(f"\\boxed{{{given}}}", gold)


@pytest.mark.parametrize(("given", "gold"), pairs(DIFFERENT))
def test_different(given, gold):
    assert not right(given, gold) and not right(f"Answer: ${given}$", gold)


@pytest.mark.parametrize("gold", GOLDS)
def test_spellings_are_right_and_near_misses_wrong(gold):
    assert not [case for case in spellings(gold) if not right(case[1], gold)]
    assert not [case for case in near_misses(gold) if case[1] != gold and right(case[1], gold)]


def test_agreement_with_math_verify():
    """Its own test expressions; where the verdicts differ, the file says why."""
    cases = [json.loads(line) for line in (HERE / "math_verify.jsonl").read_text().splitlines()]
    assert len(cases) > 150 and sum("reason" in case for case in cases) < 20
    for case in cases:
        agrees = right(case["answer"], case["gold"]) is case["equal"]
        assert agrees is ("reason" not in case), case


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234.5", 1234.5), ("-1\\frac12", -1.5), ("2\\cdot10^{3}", 2000), ("1/4", 0.25),
     ("5e-1", 0.5), ("x", None), ("1/0", None), ("2\\cdot 3", None), ("9e999999999", None)],
)  # fmt: skip
def test_number(text, value):
    assert number(text) == value


def test_whatever_is_written_is_equal_to_itself_or_nothing():
    """No text makes it fail; a text that is too long for math-verify equals its own only."""
    parts = r"""\boxed{ } { ( ] \{ 4 1.5 , ; $ \frac \pm \sqrt \pi x = \in \cup < & \\ % \text{ ^ _8
                \begin{pmatrix} \end{pmatrix} ½ √ or \infty | cm \$ \left ."""
    words = [*parts.split(), " "]
    rng = random.Random(1)
    for _ in range(150):
        given, gold = ("".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(2))
        assert same_expression(given, gold) in (True, False)
        assert same_expression(given, given)
    long = "1+" * LONGEST
    assert same_expression(long, long) and not same_expression(long, "1")
