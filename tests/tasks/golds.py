r"""Gold answers of all kinds that MATH has, made by hand; no two of them say the same."""

GOLDS = [
    "42", "-17", "0", "1", "1024", r"10,\!080", "3.21", ".0000672", r"\frac{14}{3}",
    r"-\frac{35}{9}", r"\dfrac{17}{50}", r"\frac 59", r"\frac43", r"1\frac{4}{5}", r"3\sqrt{13}",
    r"11\sqrt2",
    r"\frac{\sqrt{3}}{3}", r"12\pi", r"18+2\pi", r"90^\circ", r"\$18.90", r"864 \mbox{ inches}^2",
    r"5.4 \text{ cents}", r"28\%", "6 - 5i", "2k+2", "x^3+3x-6", "(a+5)(b+2)", r"\cot x", "1,-2",
    "3, 5, 7", "(6,31,-1)", r"\left( 3, \frac{\pi}{2} \right)", r"(3,4]", r"(-\infty, 0]",
    r"(0,9) \cup (9,36)", r"x \in [-2,7]", r"1 \pm \sqrt{19}", r"\{1\pm\sqrt{5},-2\}", "y = 2x + 3",
    "5x - 7y + 11z + 4 = 0", r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}",
    r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", "52_8", "4210_{5}", r"\text{Evelyn}",
    r"\text{(C)}", "12 apples.",
]  # fmt: skip
