"""Prompts of a given length from a fixed list of short English words, each about one token to common tokenizers."""

from __future__ import annotations

import random

_WORDS = tuple(
    """
    able about above acid across act add after again age ago air all allow alone along also always among and angle
    animal answer any appear apple area arm army art ask baby back bad ball band bank bar base bat be bear beat bed
    been before begin behind bell best better between big bird bit black block blood blow blue board boat body bone
    book born both bottom box boy branch bread break bright bring broad brown build burn busy but buy call came camp
    can capital captain car card care carry case cat catch cause cell cent center chair chance change charge chart
    check chief child choose circle city claim class clean clear climb clock close cloth cloud coast coat cold color
    column come common company cook cool copy corn corner cost cotton could count country course cover cow create
    crop cross crowd cry current cut dance danger dark day dead deal dear death decide deep degree depend desert
    design develop die differ direct discuss distant divide doctor dog dollar done door double down draw dream dress
    drink drive drop dry duck during each ear early earth ease east eat edge effect egg eight either electric else
    end enemy energy engine enough enter equal even evening event ever every exact example excite exercise expect
    eye face fact fair fall family famous far farm fast fat father favor fear feed feel feet fell felt few field
    fig fight figure fill final find fine finger finish fire first fish fit five flat floor flow flower fly follow
    food foot for force forest form forward found four free fresh friend from front fruit full fun game garden gas
    gather gave general gentle get girl give glad glass go gold gone good got govern grand grass gray great green
    grew ground group grow guess guide gun had hair half hand happen happy hard has hat have he head hear heart heat
    heavy held help her here high hill him his history hit hold hole home hope horse hot hour house how huge human
    hundred hunt hurry ice idea if imagine in inch include indicate industry insect instant iron island it job join
    joy jump just keep kept key kill kind king knew know lady lake land language large last late laugh law lay lead
    learn least leave led left leg length less let letter level lie life lift light like line liquid list listen
    """.split()
)


def prompt(source: random.Random, words: int) -> str:
    """`words` words of the list, drawn from `source`."""
    return " ".join(source.choices(_WORDS, k=words))
