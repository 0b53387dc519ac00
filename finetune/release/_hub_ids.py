"""Every licence id of the Hugging Face Hub, with its title, policy family and where to read it.

The list is the Hub's own (https://huggingface.co/docs/hub/repositories-licenses). A place without "://" is an SPDX id,
read at spdx.org. `ambiguous` is what the Hub calls a licence family: `cc` says neither whether commerce is allowed nor
whether changes are, so it decides nothing.
"""

from __future__ import annotations

from typing import NamedTuple


class HubLicense(NamedTuple):
    """One row: what the Hub calls a licence, and the policy family that it belongs to."""

    id: str
    title: str
    family: str
    place: str


_ROWS = (
    ("apache-2.0", "Apache License 2.0", "permissive", "Apache-2.0"),
    ("mit", "MIT License", "permissive", "MIT"),
    ("openrail", "OpenRAIL licence family", "ambiguous", "https://huggingface.co/blog/open_rail"),
    (
        "bigscience-openrail-m",
        "BigScience OpenRAIL-M",
        "rail",
        "https://bigscience.huggingface.co/blog/bigscience-openrail-m",
    ),
    (
        "creativeml-openrail-m",
        "CreativeML OpenRAIL-M",
        "rail",
        "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    ),
    (
        "bigscience-bloom-rail-1.0",
        "BigScience BLOOM RAIL 1.0",
        "rail",
        "https://huggingface.co/spaces/bigscience/license",
    ),
    (
        "bigcode-openrail-m",
        "BigCode OpenRAIL-M v1",
        "rail",
        "https://www.bigcode-project.org/docs/pages/bigcode-openrail",
    ),
    ("afl-3.0", "Academic Free License 3.0", "permissive", "AFL-3.0"),
    ("artistic-2.0", "Artistic License 2.0", "copyleft", "Artistic-2.0"),
    ("bsl-1.0", "Boost Software License 1.0", "permissive", "BSL-1.0"),
    ("bsd", "BSD licence family", "ambiguous", "https://huggingface.co/docs/hub/repositories-licenses"),
    ("bsd-2-clause", "BSD 2-Clause License", "permissive", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD 3-Clause License", "permissive", "BSD-3-Clause"),
    ("bsd-3-clause-clear", "BSD 3-Clause Clear License", "permissive", "BSD-3-Clause-Clear"),
    ("c-uda", "Computational Use of Data Agreement 1.0", "permissive", "C-UDA-1.0"),
    ("cc", "Creative Commons licence family", "ambiguous", "https://creativecommons.org/share-your-work/cclicenses/"),
    ("cc0-1.0", "Creative Commons Zero 1.0", "public_domain", "CC0-1.0"),
    ("cc-by-2.0", "Creative Commons Attribution 2.0", "attribution", "CC-BY-2.0"),
    ("cc-by-2.5", "Creative Commons Attribution 2.5", "attribution", "CC-BY-2.5"),
    ("cc-by-3.0", "Creative Commons Attribution 3.0", "attribution", "CC-BY-3.0"),
    ("cc-by-4.0", "Creative Commons Attribution 4.0", "attribution", "CC-BY-4.0"),
    ("cc-by-sa-3.0", "Creative Commons Attribution-ShareAlike 3.0", "share_alike", "CC-BY-SA-3.0"),
    ("cc-by-sa-4.0", "Creative Commons Attribution-ShareAlike 4.0", "share_alike", "CC-BY-SA-4.0"),
    ("cc-by-nc-2.0", "Creative Commons Attribution-NonCommercial 2.0", "non_commercial", "CC-BY-NC-2.0"),
    ("cc-by-nc-3.0", "Creative Commons Attribution-NonCommercial 3.0", "non_commercial", "CC-BY-NC-3.0"),
    ("cc-by-nc-4.0", "Creative Commons Attribution-NonCommercial 4.0", "non_commercial", "CC-BY-NC-4.0"),
    ("cc-by-nd-4.0", "Creative Commons Attribution-NoDerivatives 4.0", "no_derivatives", "CC-BY-ND-4.0"),
    (
        "cc-by-nc-nd-3.0",
        "Creative Commons Attribution-NonCommercial-NoDerivatives 3.0",
        "no_derivatives",
        "CC-BY-NC-ND-3.0",
    ),
    (
        "cc-by-nc-nd-4.0",
        "Creative Commons Attribution-NonCommercial-NoDerivatives 4.0",
        "no_derivatives",
        "CC-BY-NC-ND-4.0",
    ),
    (
        "cc-by-nc-sa-2.0",
        "Creative Commons Attribution-NonCommercial-ShareAlike 2.0",
        "non_commercial",
        "CC-BY-NC-SA-2.0",
    ),
    (
        "cc-by-nc-sa-3.0",
        "Creative Commons Attribution-NonCommercial-ShareAlike 3.0",
        "non_commercial",
        "CC-BY-NC-SA-3.0",
    ),
    (
        "cc-by-nc-sa-4.0",
        "Creative Commons Attribution-NonCommercial-ShareAlike 4.0",
        "non_commercial",
        "CC-BY-NC-SA-4.0",
    ),
    ("cdla-sharing-1.0", "Community Data License Agreement – Sharing 1.0", "share_alike", "CDLA-Sharing-1.0"),
    ("cdla-permissive-1.0", "Community Data License Agreement – Permissive 1.0", "permissive", "CDLA-Permissive-1.0"),
    ("cdla-permissive-2.0", "Community Data License Agreement – Permissive 2.0", "permissive", "CDLA-Permissive-2.0"),
    ("wtfpl", "Do What The F*ck You Want To Public License", "public_domain", "WTFPL"),
    ("ecl-2.0", "Educational Community License 2.0", "permissive", "ECL-2.0"),
    ("epl-1.0", "Eclipse Public License 1.0", "copyleft", "EPL-1.0"),
    ("epl-2.0", "Eclipse Public License 2.0", "copyleft", "EPL-2.0"),
    ("etalab-2.0", "Etalab Open License 2.0", "attribution", "etalab-2.0"),
    ("eupl-1.1", "European Union Public License 1.1", "copyleft", "EUPL-1.1"),
    ("eupl-1.2", "European Union Public License 1.2", "copyleft", "EUPL-1.2"),
    ("agpl-3.0", "GNU Affero General Public License 3.0", "copyleft", "AGPL-3.0-only"),
    ("gfdl", "GNU Free Documentation License family", "ambiguous", "https://www.gnu.org/licenses/licenses.html"),
    ("gpl", "GNU General Public License family", "ambiguous", "https://www.gnu.org/licenses/licenses.html"),
    ("gpl-2.0", "GNU General Public License 2.0", "copyleft", "GPL-2.0-only"),
    ("gpl-3.0", "GNU General Public License 3.0", "copyleft", "GPL-3.0-only"),
    ("lgpl", "GNU Lesser General Public License family", "ambiguous", "https://www.gnu.org/licenses/licenses.html"),
    ("lgpl-2.1", "GNU Lesser General Public License 2.1", "copyleft", "LGPL-2.1-only"),
    ("lgpl-3.0", "GNU Lesser General Public License 3.0", "copyleft", "LGPL-3.0-only"),
    ("isc", "ISC License", "permissive", "ISC"),
    ("h-research", "H Research License", "research_only", "https://huggingface.co/Hcompany/Holo1-3B/blob/main/LICENSE"),
    (
        "intel-research",
        "Intel Research Use License Agreement",
        "research_only",
        "https://huggingface.co/OpenVINO/Llama-3.1-8B-Instruct-FastDraft-150M-int8-ov/blob/main/LICENSE.md",
    ),
    ("lppl-1.3c", "LaTeX Project Public License 1.3c", "copyleft", "LPPL-1.3c"),
    ("ms-pl", "Microsoft Public License", "permissive", "MS-PL"),
    (
        "apple-ascl",
        "Apple Sample Code License",
        "permissive",
        "https://developer.apple.com/support/downloads/terms/apple-sample-code/Apple-Sample-Code-License.pdf",
    ),
    (
        "apple-amlr",
        "Apple Model License for Research",
        "research_only",
        "https://huggingface.co/apple/deeplabv3-mobilevit-small/blob/main/LICENSE",
    ),
    ("mpl-2.0", "Mozilla Public License 2.0", "copyleft", "MPL-2.0"),
    ("odc-by", "Open Data Commons Attribution License", "attribution", "ODC-By-1.0"),
    ("odbl", "Open Database License", "share_alike", "ODbL-1.0"),
    ("openmdw-1.0", "OpenMDW License Agreement 1.0", "permissive", "https://openmdw.ai/license/1-0/"),
    ("openmdw-1.1", "OpenMDW License Agreement 1.1", "permissive", "https://openmdw.ai/license/1-1/"),
    (
        "openrail++",
        "Open RAIL++-M License",
        "rail",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    ),
    ("osl-3.0", "Open Software License 3.0", "copyleft", "OSL-3.0"),
    ("postgresql", "PostgreSQL License", "permissive", "PostgreSQL"),
    ("ofl-1.1", "SIL Open Font License 1.1", "copyleft", "OFL-1.1"),
    ("ncsa", "University of Illinois/NCSA Open Source License", "permissive", "NCSA"),
    ("unlicense", "The Unlicense", "public_domain", "Unlicense"),
    ("zlib", "zlib License", "permissive", "Zlib"),
    ("pddl", "Open Data Commons Public Domain Dedication and License", "public_domain", "PDDL-1.0"),
    ("lgpl-lr", "Lesser General Public License For Linguistic Resources", "copyleft", "LGPLLR"),
    (
        "deepfloyd-if-license",
        "DeepFloyd IF Research License Agreement",
        "research_only",
        "https://huggingface.co/spaces/DeepFloyd/deepfloyd-if-license",
    ),
    (
        "fair-noncommercial-research-license",
        "FAIR Noncommercial Research License",
        "research_only",
        "https://huggingface.co/facebook/fair-noncommercial-research-license/blob/main/LICENSE",
    ),
    (
        "llama2",
        "Llama 2 Community License",
        "community",
        "https://huggingface.co/meta-llama/Llama-2-7b-chat-hf/blob/main/LICENSE.txt",
    ),
    (
        "llama3",
        "Meta Llama 3 Community License",
        "community",
        "https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/LICENSE",
    ),
    (
        "llama3.1",
        "Llama 3.1 Community License",
        "community",
        "https://huggingface.co/meta-llama/Meta-Llama-3.1-70B-Instruct/blob/main/LICENSE",
    ),
    (
        "llama3.2",
        "Llama 3.2 Community License",
        "community",
        "https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/LICENSE.txt",
    ),
    (
        "llama3.3",
        "Llama 3.3 Community License",
        "community",
        "https://huggingface.co/meta-llama/Llama-3.3-70B-Instruct/blob/main/LICENSE",
    ),
    (
        "llama4",
        "Llama 4 Community License",
        "community",
        "https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct/blob/main/LICENSE",
    ),
    (
        "grok2-community",
        "Grok 2 Community License",
        "community",
        "https://huggingface.co/xai-org/grok-2/blob/main/LICENSE",
    ),
    ("gemma", "Gemma Terms of Use", "gemma", "https://ai.google.dev/gemma/terms"),
    ("unknown", "Unknown", "unknown", ""),
    ("other", "Other", "unknown", ""),
)

HUB_LICENSES: dict[str, HubLicense] = {row[0]: HubLicense(*row) for row in _ROWS}
"""Licence id of the Hub → its row."""

SPDX_ALIASES: dict[str, str] = {
    "agpl-3.0-only": "agpl-3.0",
    "agpl-3.0-or-later": "agpl-3.0",
    "c-uda-1.0": "c-uda",
    "gpl-2.0-only": "gpl-2.0",
    "gpl-2.0-or-later": "gpl-2.0",
    "gpl-3.0-only": "gpl-3.0",
    "gpl-3.0-or-later": "gpl-3.0",
    "lgpl-2.1-only": "lgpl-2.1",
    "lgpl-2.1-or-later": "lgpl-2.1",
    "lgpl-3.0-only": "lgpl-3.0",
    "lgpl-3.0-or-later": "lgpl-3.0",
    "lgpllr": "lgpl-lr",
    "odbl-1.0": "odbl",
    "odc-by-1.0": "odc-by",
    "pddl-1.0": "pddl",
}
"""SPDX ids (lower case) that the Hub spells differently."""
