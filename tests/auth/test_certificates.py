"""Which role the holder of a certificate has."""

from typing import Any

import pytest

from registryd.auth.certificates import CertificateRule, caller_of, san, subject
from registryd.web.caller import Permission

SHOWN: dict[str, Any] = {
    "subject": (
        (("countryName", "DE"),),
        (("organizationName", "Example, Inc"),),
        (("commonName", "billing"),),
    ),
    "subjectAltName": (("DNS", "billing.internal"), ("URI", "spiffe://example/billing")),
}


def rule(**fields: Any) -> CertificateRule:
    return CertificateRule(**{"role": Permission.WRITER, "prefixes": ("billing-",), **fields})


@pytest.mark.parametrize(
    "fitting",
    [
        rule(subject=subject("CN=billing")),
        rule(subject=subject(r"cn=billing, O=Example\, Inc")),
        rule(san=san("DNS:billing.internal")),
        rule(san=san("URI:spiffe://example/billing"), subject=subject("C=DE")),
    ],
)
def test_a_certificate_that_fits_has_the_rule_s_role(fitting: CertificateRule) -> None:
    caller = caller_of(SHOWN, [rule(subject=subject("CN=other")), fitting])
    assert caller is not None
    assert caller.name == "cert:billing"
    assert (caller.role, caller.prefixes) == (Permission.WRITER, ("billing-",))


@pytest.mark.parametrize(
    "other",
    [
        rule(subject=subject("CN=bill")),
        rule(subject=subject("CN=billing,O=Other")),
        rule(san=san("DNS:internal")),
        rule(san=san("DNS:billing.internal"), subject=subject("CN=other")),
    ],
)
def test_all_that_a_rule_names_has_to_be_there_in_full(other: CertificateRule) -> None:
    assert caller_of(SHOWN, [other]) is None
    assert caller_of({}, [other]) is None


def test_the_first_fitting_rule_counts() -> None:
    rules = [
        rule(subject=subject("C=DE"), role=Permission.READER),
        rule(subject=subject("CN=billing"), role=Permission.ADMIN),
    ]
    caller = caller_of(SHOWN, rules)
    assert caller is not None
    assert caller.role is Permission.READER


def test_a_certificate_without_a_common_name_is_called_by_its_alternative_name() -> None:
    caller = caller_of(SHOWN | {"subject": ()}, [rule(san=san("DNS:billing.internal"))])
    assert caller is not None
    assert caller.name == "cert:billing.internal"


@pytest.mark.parametrize("text", ["billing", "CN", "XX=billing", "CN=a,billing"])
def test_what_is_no_subject_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a subject"):
        subject(text)


@pytest.mark.parametrize("text", ["billing", "DNS:", "dns:a"])
def test_what_is_no_alternative_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an alternative name"):
        san(text)
