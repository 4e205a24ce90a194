"""Texts on which a converted model is compared with the original: short, long, prose, code, other scripts."""

from __future__ import annotations

SAMPLE_PASSAGES = (
    "yes",
    "Who wrote the first report on the flood?",
    "Paris is the capital of France, and the Seine runs through it.",
    "The invoice 2024-0113 is due within 30 days; a fee of 2.5% is charged on late payment.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2",
    "Die Prüfung wurde am 3. Mai in Köln abgelegt und mit sehr gut bewertet.",
    "機械学習は、データから規則を見つける方法である。",
    "Аттестат выдан в Москве в 1998 году.",
    "!!! ??? ### --- 🙂🙂🙂",
    "Aspirin inhibits cyclooxygenase, which lowers the formation of prostaglandins and thromboxanes; "
    "in low doses it is given to patients after a myocardial infarction to prevent another.",
    "The committee met on Tuesday. It heard three witnesses, read the minutes of the last meeting, "
    "and put off its vote on the budget until the auditors have answered the questions that were "
    "sent to them in March. Two members asked that their objections be recorded. The chair agreed, "
    "and the meeting was closed at six.",
    "A B-tree keeps its keys sorted in pages of equal size, so that a search reads one page a level. "
    "When a page is full it is split in two and the middle key moves up; when it is nearly empty it "
    "is joined with its neighbour. Because every page but the root is at least half full, the height "
    "grows with the logarithm of the number of keys, and a table of a hundred million rows is "
    "searched in four reads. Writing is dearer: a log is written first, so that a crash between two "
    "pages loses nothing that was acknowledged.",
    "It was the cook who first noticed that the lamp had gone out. She had come down for water, the "
    "stairs were dark, and from the yard there was no sound, not even of the dog. She stood for a "
    "moment with her hand on the rail; then she called, and as no one answered she went back up, "
    "closed the door behind her, and sat on the bed until it was light. In the morning they found "
    "the gate open and the snow before it trodden by many feet. Nothing had been taken. The dog lay "
    "asleep beneath the bench by the stove, as on every morning, and would not look at anyone. Years "
    "later, when she told of it, she always ended by saying that she had been right to stay "
    "upstairs, and that those who laughed at her had never heard a house so still.",
    "name,city,year\nAda,London,1843\nGrace,New York,1952\nHedy,Vienna,1941\nKatherine,Hampton,1962\n",
    "   spaces   and\ttabs\n\nand an empty line   ",
    "Supercalifragilisticexpialidocious antidisestablishmentarianism 00000000-0000-4000-8000-000000000000",
)
