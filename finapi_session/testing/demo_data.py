"""Believable data: German banks, categories, and what each user has. The same on every run for the same days."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

Record = dict[str, Any]

#: Name, Bankleitzahl, BIC, city.
_BANKS = """\
finAPI Test Bank|00000000|TESTDE00XXX|München
Berliner Sparkasse|10050000|BELADEBEXXX|Berlin
Hamburger Sparkasse|20050550|HASPDEHHXXX|Hamburg
Sparkasse Hannover|25050180|SPKHDE2HXXX|Hannover
Sparkasse Bremen|29050101|SBREDE22XXX|Bremen
Stadtsparkasse Düsseldorf|30050110|DUSSDEDDXXX|Düsseldorf
Sparkasse Essen|36050105|SPESDE3EXXX|Essen
Sparkasse KölnBonn|37050198|COLSDE33XXX|Köln
Kreissparkasse Köln|37050299|COKSDE33XXX|Köln
Sparkasse Aachen|39050000|AACSDE33XXX|Aachen
Sparkasse Münsterland Ost|40050150|WELADED1MST|Münster
Sparkasse Dortmund|44050199|DORTDE33XXX|Dortmund
Frankfurter Sparkasse|50050201|HELADEF1822|Frankfurt am Main
Nassauische Sparkasse|51050015|NASSDE55XXX|Wiesbaden
Sparkasse Nürnberg|76050101|SSKNDE77XXX|Nürnberg
Stadtsparkasse München|70150000|SSKMDEMMXXX|München
Ostsächsische Sparkasse Dresden|85050300|OSDDDE81XXX|Dresden
Sparkasse Leipzig|86055592|WELADE8LXXX|Leipzig
Deutsche Bank|10070000|DEUTDEBBXXX|Berlin
Deutsche Bank|50070010|DEUTDEFFXXX|Frankfurt am Main
norisbank|10077777|NORSDE51XXX|Bonn
Postbank|10010010|PBNKDEFFXXX|Berlin
Commerzbank|50040000|COBADEFFXXX|Frankfurt am Main
comdirect|20041133|COBADEHDXXX|Quickborn
HypoVereinsbank|70020270|HYVEDEMMXXX|München
ING|50010517|INGDDEFFXXX|Frankfurt am Main
Deutsche Kreditbank|12030000|BYLADEM1001|Berlin
N26 Bank|10011001|NTSBDEB1XXX|Berlin
Consorsbank|76030080|CSDBDE71XXX|Nürnberg
TARGOBANK|30020900|CMCIDEDDXXX|Düsseldorf
Santander Consumer Bank|31010833|SCFBDE33XXX|Mönchengladbach
Berliner Volksbank|10090000|BEVODEBBXXX|Berlin
Hamburger Volksbank|20190003|GENODEF1HH2|Hamburg
Frankfurter Volksbank|50190000|FFVBDEFFXXX|Frankfurt am Main
Münchner Bank|70190000|GENODEF1M01|München
GLS Gemeinschaftsbank|43060967|GENODEM1GLS|Bochum
Deutsche Apotheker- und Ärztebank|30060601|DAAEDEDDXXX|Düsseldorf
BBBank|66090800|GENODE61BBB|Karlsruhe
Sparda-Bank Berlin|12096597|GENODEF1S10|Berlin
Sparda-Bank München|70090500|GENODEF1S04|München
Oldenburgische Landesbank|28020050|OLBODEH2XXX|Oldenburg
UmweltBank|76035000|UMWEDE7NXXX|Nürnberg
Triodos Bank|50031000|TRODDEF1XXX|Frankfurt am Main"""

#: Id, name, id of the parent.
_CATEGORIES = (
    (370, "Einnahmen", None),
    (371, "Gehalt / Lohn", 370),
    (380, "Wohnen", None),
    (381, "Miete", 380),
    (382, "Strom", 380),
    (383, "Telefon und Internet", 380),
    (390, "Lebenshaltung", None),
    (391, "Lebensmittel", 390),
    (392, "Drogerie", 390),
    (393, "Restaurant", 390),
    (400, "Mobilität", None),
    (401, "Bahn und Bus", 400),
    (402, "Tanken", 400),
    (410, "Freizeit", None),
    (411, "Bücher und Medien", 410),
    (412, "Sport", 410),
    (420, "Versicherungen", None),
    (430, "Sparen", None),
    (440, "Bargeld", None),
)
_LABELS = ("Steuer", "Haushalt")
#: Counterpart, id of the category, label.
_SORTED = {
    "Hansa Logistik GmbH": (371, None),
    "Wohnungsbaugenossenschaft Nord eG": (381, "Haushalt"),
    "Stadtwerke Energie GmbH": (382, "Haushalt"),
    "Telefon & Netz AG": (383, "Haushalt"),
    "Allgemeine Versicherung AG": (420, "Steuer"),
    "Verkehrsbetriebe": (401, "Steuer"),
    "Musik-Streaming GmbH": (411, None),
    "Turnverein 1860 e.V.": (412, None),
    "Eigenes Tagesgeld": (430, None),
    "Eigenes Girokonto": (430, None),
    "REWE Markt": (391, "Haushalt"),
    "EDEKA Center": (391, "Haushalt"),
    "dm-drogerie markt": (392, None),
    "Bäckerei Schöning": (391, None),
    "Tankstelle Südring": (402, None),
    "Buchhandlung am Markt": (411, None),
    "Pizzeria Da Rocco": (393, None),
    "Deutsche Bahn AG": (401, "Steuer"),
    "Geldautomat": (440, None),
}

#: Day of the month, counterpart, purpose, cents.
_MONTHLY = (
    (1, "Wohnungsbaugenossenschaft Nord eG", "Miete {month} WE 04-112", -94500),
    (1, "Stadtwerke Energie GmbH", "Abschlag Strom {month} Vertrag 8840213", -6800),
    (2, "Telefon & Netz AG", "Rechnung {number} Internet und Festnetz", -3995),
    (3, "Allgemeine Versicherung AG", "Privathaftpflicht und Hausrat {month}", -2417),
    (5, "Verkehrsbetriebe", "Deutschlandticket {month} Abo 55120934", -5800),
    (15, "Musik-Streaming GmbH", "Premium {month}", -1099),
    (20, "Turnverein 1860 e.V.", "Mitgliedsbeitrag {month}", -2500),
    (27, "Hansa Logistik GmbH", "Gehalt {month} Personalnr. 20417", 318764),
    (28, "Eigenes Tagesgeld", "Sparen {month}", -40000),
)

#: Counterpart, purpose, least and most cents.
_EVERYDAY = (
    ("REWE Markt", "Kartenzahlung girocard {number}", 890, 8420),
    ("EDEKA Center", "Kartenzahlung girocard {number}", 1240, 9630),
    ("dm-drogerie markt", "Kartenzahlung girocard {number}", 495, 4210),
    ("Bäckerei Schöning", "Kartenzahlung kontaktlos {number}", 210, 1480),
    ("Tankstelle Südring", "Kartenzahlung Super E10 {number}", 3200, 8800),
    ("Buchhandlung am Markt", "Bestellung {number}", 990, 5400),
    ("Pizzeria Da Rocco", "Lastschrift {number} Vielen Dank", 1450, 6200),
    ("Deutsche Bahn AG", "Online-Ticket Auftrag {number}", 1790, 11900),
    ("Geldautomat", "Barverfügung {number}", 5000, 20000),
)

_MONTHS = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()
#: Ids of transactions count days from here, a hundred for each.
_EPOCH = date(2000, 1, 1)


def iban(bank_code: str, account_number: str) -> str:
    """Return the German IBAN of an account, with its check digits (ISO 13616)."""
    number = f"{bank_code}{account_number:0>10}"
    return f"DE{98 - int(number + '131400') % 97:02}{number}"


def first_day(today: date) -> date:
    """Return the day on which the data begin: the first of the month, five months before."""
    months = today.year * 12 + today.month - 1 - 5
    return date(months // 12, months % 12 + 1, 1)


@lru_cache(maxsize=1)
def banks() -> tuple[Record, ...]:
    """Return all banks, as finAPI lists them."""
    rows = [line.split("|") for line in _BANKS.splitlines()]
    return tuple(
        {
            "id": 277700 + place,
            "name": name,
            "bic": bic,
            "blz": code,
            "city": city,
            "location": "DE",
            "isTestBank": code == "00000000",
            "popularity": 95 - place,
            "interfaces": [{"bankingInterface": "XS2A", "isAisSupported": True, "isPisSupported": True}],
        }
        for place, (name, code, bic, city) in enumerate(rows)
    )


@lru_cache(maxsize=1)
def categories() -> tuple[Record, ...]:
    """Return all categories, as finAPI lists them."""
    names = {number: name for number, name, _ in _CATEGORIES}
    return tuple(
        {
            "id": number,
            "name": name,
            "parentId": parent,
            "parentName": names.get(parent or 0),
            "isCustom": False,
            "children": [child for child, _, above in _CATEGORIES if above == number],
        }
        for number, name, parent in _CATEGORIES
    )


def labels(user_id: str) -> list[Record]:
    """Return a user's labels."""
    return [{"id": connection_id(user_id) + place, "name": name} for place, name in enumerate(_LABELS, 1)]


def connection_id(user_id: str) -> int:
    """Return the id of a user's one bank connection, from which the ids of her data are counted."""
    return 10**6 + zlib.crc32(user_id.lower().encode()) % (9 * 10**6) * 10


def bank_connection(user_id: str, accounts: Sequence[Record], today: date) -> Record:
    """Return a user's one connection, with *accounts*, updated in the morning of *today*."""
    interface = {"bankingInterface": "XS2A", "aisConsent": None, "lastSuccessfulUpdate": f"{today} 06:12:44.000"}
    return {
        "id": connection_id(user_id),
        "bankId": banks()[1]["id"],
        "name": None,
        "categorizationStatus": "READY",
        "updateStatus": "READY",
        "interfaces": [interface],
        "accountIds": [account["id"] for account in accounts],
        "owners": None,
        "bank": banks()[1],
    }


def accounts(user_id: str) -> list[Record]:
    """Return a user's Girokonto, Tagesgeld and Kreditkarte, with numbers of their own, before any transaction."""
    kinds = (("Girokonto", "CHECKING", 284310), ("Tagesgeld", "SAVINGS", 612000), ("Kreditkarte", "CREDIT_CARD", 0))
    return [account(user_id, place, name, kind, cents) for place, (name, kind, cents) in enumerate(kinds, 1)]


def account(user_id: str, place: int, name: str, kind: str, cents: int) -> Record:
    """Return the account of a user that is number *place*, with a balance in cents."""
    seed = connection_id(user_id)
    number, is_card = f"{seed % 10**8:08}{place:02}", kind == "CREDIT_CARD"
    return {
        "id": seed + place,
        "bankConnectionId": seed,
        "accountName": name,
        "iban": None if is_card else iban(banks()[1]["blz"], number),
        "accountNumber": f"4930{seed % 10**8:08}0017" if is_card else number,
        "accountHolderName": user_id.replace(".", " ").title(),
        "accountCurrency": "EUR",
        "accountType": kind,
        "balance": cents / 100,
        "isSeized": False,
    }


@lru_cache(maxsize=256)
def transactions(user_id: str, first: date, last: date) -> tuple[Record, ...]:
    """Return a user's transactions from *first* to *last*, the newest first. A day's are the same in every span."""
    days = (first + timedelta(offset) for offset in range((last - first).days + 1))
    return tuple(entry for day in days for entry in _of_day(user_id, day))[::-1]


def transaction(user_id: str, number: int, account_id: int, day: date, name: str, purpose: str, cents: int) -> Record:
    """Return one transaction of a user, sorted as finAPI would."""
    category, label = _SORTED.get(name, (None, None))
    return {
        "id": connection_id(user_id) * 10**7 + number,
        "accountId": account_id,
        "bankBookingDate": str(day),
        "valueDate": str(day),
        "finapiBookingDate": str(day),
        "amount": cents / 100,
        "currency": "EUR",
        "purpose": purpose,
        "counterpartName": name,
        "type": "Gutschrift" if cents > 0 else "Lastschrift",
        "category": next((each for each in categories() if each["id"] == category), None),
        "labels": [each for each in labels(user_id) if each["name"] == label],
        "isNew": False,
        "isPotentialDuplicate": False,
    }


def number_of(day: date, place: int) -> int:
    """Return the number of the transaction that is at *place* (from 0 to 99) of *day*."""
    return (day - _EPOCH).days * 100 + place


def _of_day(user_id: str, day: date) -> list[Record]:
    seed = connection_id(user_id)
    chance = random.Random(f"{seed} {day}")
    entries = [(seed + 1, *entry) for entry in _regular(day, chance)]
    if chance.random() < 0.7:
        entries.append((seed + chance.choice((1, 1, 3)), *_everyday(chance)))
    entries += [(seed + 2, "Eigenes Girokonto", *rest) for rest in _saved(entries)]
    return [
        transaction(user_id, number_of(day, place), entry[0], day, *entry[1:]) for place, entry in enumerate(entries)
    ]


def _saved(entries: Sequence[tuple[int, str, str, int]]) -> list[tuple[str, int]]:
    return [(purpose, -cents) for _, name, purpose, cents in entries if name == "Eigenes Tagesgeld"]


def _regular(day: date, chance: random.Random) -> list[tuple[str, str, int]]:
    month = f"{_MONTHS[day.month - 1]} {day.year}"
    return [
        (name, purpose.format(month=month, number=chance.randrange(10**7, 10**8)), cents)
        for due, name, purpose, cents in _MONTHLY
        if due == day.day
    ]


def _everyday(chance: random.Random) -> tuple[str, str, int]:
    name, purpose, least, most = chance.choice(_EVERYDAY)
    cents = chance.randint(least, most)
    cents -= cents % 1000 if name == "Geldautomat" else 0
    return name, purpose.format(number=chance.randrange(10**7, 10**8)), -cents
