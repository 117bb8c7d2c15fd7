"""A mail server for tests: takes mail over STARTTLS after a login, and writes each one to a file of its own.

Arguments: folder, port, certificate chain, key, user, password.
"""

import os
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

folder, port, chain, key, user, password = sys.argv[1:]


class Keeper:
    """Writes mail to `mail-N.eml`, whole or not at all."""

    def __init__(self):
        self.number = 0

    async def handle_DATA(self, server, session, envelope):
        self.number += 1
        path = os.path.join(folder, f"mail-{self.number:04}.eml")
        with open(path + ".new", "wb") as file:
            file.write(b"X-Recipients: " + ",".join(envelope.rcpt_tos).encode() + b"\r\n" + envelope.content)
        os.rename(path + ".new", path)
        return "250 taken"


def login(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (user.encode(), password.encode())
    return AuthResult(success=good)


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(chain, key)
Controller(
    Keeper(),
    hostname="127.0.0.1",
    port=int(port),
    tls_context=context,
    require_starttls=True,
    authenticator=login,
    auth_required=True,
).start()
threading.Event().wait()
