"""A CA and what it signs: the gateway's certificate, Envoy's, a caller's, and one for a name that nobody admits.

The names are those of deploy/envoy/envoy.yaml.
"""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


# What else than its name is in the caller's certificate.
CART = "spiffe://mesh.example/ns/shop/sa/cart"


def write(folder):
    """Writes `NAME.crt` and `NAME.key` for each name, and `ca.crt`."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA of the mesh test")])
    authority = x509.BasicConstraints(ca=True, path_length=0)
    ca = sign(ca_name, ca_name, ca_key.public_key(), ca_key, (authority, True))
    (folder / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    for name in ["gateway.example", "envoy.example", "cart.example", "stranger.example"]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        uris = [x509.UniformResourceIdentifier(CART)] if name == "cart.example" else []
        names = x509.SubjectAlternativeName([x509.DNSName(name), *uris])
        certificate = sign(subject, ca_name, key.public_key(), ca_key, (names, False))
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return folder


def sign(subject, issuer, public_key, by, extension):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
    return builder.add_extension(*extension).sign(by, hashes.SHA256())
