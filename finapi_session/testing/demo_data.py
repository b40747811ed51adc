"""Believable data: German banks, and the accounts and transactions of each user. The same on every run."""

from __future__ import annotations

import random
import zlib
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
_FIRST, _LAST = date(2025, 1, 1), date(2025, 6, 30)


def iban(bank_code: str, account_number: str) -> str:
    """Return the German IBAN of an account, with its check digits (ISO 13616)."""
    number = f"{bank_code}{account_number:0>10}"
    return f"DE{98 - int(number + '131400') % 97:02}{number}"


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


def bank_connections(user_id: str) -> list[Record]:
    """Return a user's one connection."""
    ids = [account["id"] for account in accounts(user_id)]
    updated = f"{_LAST} 06:12:44.000"
    interface = {"bankingInterface": "XS2A", "aisConsent": None, "lastSuccessfulUpdate": updated}
    connection = {
        "id": _seed(user_id),
        "bankId": 277701,
        "name": None,
        "categorizationStatus": "READY",
        "updateStatus": "READY",
        "interfaces": [interface],
        "accountIds": ids,
        "owners": None,
        "bank": banks()[1],
    }
    return [connection]


@lru_cache(maxsize=256)
def accounts(user_id: str) -> tuple[Record, ...]:
    """Return a user's Girokonto, Tagesgeld and Kreditkarte, with numbers of their own."""
    seed, bank = _seed(user_id), banks()[1]
    spent: dict[int, int] = {}
    for entry in transactions(user_id):
        spent[entry["accountId"]] = spent.get(entry["accountId"], 0) + round(entry["amount"] * 100)
    kinds = (
        ("Girokonto", "CHECKING", 284310),
        ("Tagesgeld", "SAVINGS", 612000),
        ("Kreditkarte", "CREDIT_CARD", 0),
    )
    return tuple(
        {
            "id": seed + place,
            "bankConnectionId": seed,
            "accountName": name,
            "iban": None if kind == "CREDIT_CARD" else iban(bank["blz"], f"{seed % 10**8:08}{place:02}"),
            "accountNumber": f"4930{seed % 10**8:08}0017" if kind == "CREDIT_CARD" else f"{seed % 10**8:08}{place:02}",
            "accountHolderName": user_id.replace(".", " ").title(),
            "accountCurrency": "EUR",
            "accountType": kind,
            "balance": (opening + spent.get(seed + place, 0)) / 100,
            "isSeized": False,
        }
        for place, (name, kind, opening) in enumerate(kinds, 1)
    )


@lru_cache(maxsize=256)
def transactions(user_id: str) -> tuple[Record, ...]:
    """Return half a year of a user's transactions, the newest first."""
    seed = _seed(user_id)
    chance = random.Random(seed)
    entries: list[tuple[date, int, str, str, int]] = []
    for offset in range((_LAST - _FIRST).days + 1):
        day = _FIRST + timedelta(offset)
        entries += [(day, seed + 1, *entry) for entry in _regular(day, chance)]
        if chance.random() < 0.7:
            entries.append((day, seed + chance.choice((1, 1, 3)), *_everyday(chance)))
    saved = [entry for entry in entries if entry[2] == "Eigenes Tagesgeld"]
    entries += [(day, seed + 2, "Eigenes Girokonto", purpose, -cents) for day, _, _, purpose, cents in saved]
    entries.sort(key=lambda entry: entry[0])
    return tuple(_transaction(seed * 1000 + place, entry) for place, entry in enumerate(entries))[::-1]


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


def _transaction(number: int, entry: tuple[date, int, str, str, int]) -> Record:
    day, account_id, name, purpose, cents = entry
    return {
        "id": number,
        "accountId": account_id,
        "bankBookingDate": str(day),
        "valueDate": str(day),
        "finapiBookingDate": str(day),
        "amount": cents / 100,
        "currency": "EUR",
        "purpose": purpose,
        "counterpartName": name,
        "type": "Gutschrift" if cents > 0 else "Lastschrift",
        "isNew": False,
        "isPotentialDuplicate": False,
    }


def _seed(user_id: str) -> int:
    return 10**6 + zlib.crc32(user_id.lower().encode()) % (9 * 10**6) * 10
