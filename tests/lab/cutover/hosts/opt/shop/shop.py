"""A small web shop on MariaDB or PostgreSQL: what the lab's cutover moves. Its API is that of the demo's shop (engine/lab/src/shop).

    shop.py CONFIG      `port = 8081`, `database = "mariadb:shop"` or "postgresql:shop", `uploads = "shop/uploads"`
"""

import datetime
import http.server
import json
import os
import queue
import socket
import sys
import urllib.parse

PASSWORD_FILE = "/lab/own/app_password"


class Unknown(Exception):
    """The database went away while it was told to commit: it may have, or not."""


def settings(path):
    found = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            key, equals, value = line.split("#")[0].partition("=")
            if equals:
                found[key.strip()] = value.strip().strip('"')
    return found


class Database:
    """Connections that are kept and used again, and thrown away after any error."""

    def __init__(self, address):
        self.kind, _, self.name = address.partition(":")
        self.idle = queue.LifoQueue()
        with open(PASSWORD_FILE, encoding="utf-8") as f:
            self.password = f.read().strip()

    def connect(self):
        if self.kind == "mariadb":
            import pymysql

            c = pymysql.connect(unix_socket="/run/mysqld/mysqld.sock", user="shop", password=self.password, database=self.name, connect_timeout=3, read_timeout=8)
            c.autocommit(False)
            return c
        import psycopg2

        return psycopg2.connect(host="127.0.0.1", user="shop", password=self.password, dbname=self.name, connect_timeout=3)

    def use(self, work):
        """Does the work in a transaction."""
        while True:
            try:
                connection, fresh = self.idle.get_nowait(), False
            except queue.Empty:
                connection, fresh = self.connect(), True
            committing = False
            try:
                with connection.cursor() as cursor:
                    result = work(cursor)
                committing = True
                connection.commit()
                self.idle.put(connection)
                return result
            except Exception as e:
                try:
                    # One that was closed while it was idle has done nothing, and says so by not taking this either.
                    connection.rollback()
                    alive = True
                except Exception:
                    alive = False
                try:
                    connection.close()
                except Exception:
                    pass
                if committing:
                    raise Unknown(str(e)) from e
                if alive or fresh:
                    raise


COLUMNS = "id, product, quantity, customer, placed_at"


def place(cursor, order):
    """Stores an order and its payment, once per id."""
    cursor.execute(f"SELECT {COLUMNS} FROM orders WHERE id = %s", (order["id"],))
    known = cursor.fetchone()
    if known:
        return dict(zip(COLUMNS.split(", "), known))
    order = {**order, "placed_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")}
    cursor.execute(
        "INSERT INTO orders (id, product, quantity, customer, placed_at) VALUES (%s, %s, %s, %s, %s)",
        (order["id"], order["product"], order["quantity"], order["customer"], order["placed_at"]),
    )
    cursor.execute(
        "INSERT INTO payments (order_id, amount_cents) SELECT %s, price_cents * %s FROM products WHERE sku = %s",
        (order["id"], order["quantity"], order["product"]),
    )
    return order


def one(cursor, query, *values):
    cursor.execute(query, values)
    return cursor.fetchone()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def attempt(self, f):
        try:
            f()
        except Unknown as e:
            self.answer(504, {"error": f"it is not known whether this was stored: {e}"})
        except Exception as e:
            self.answer(503, {"error": str(e)})

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path != "/orders" or not order.get("id"):
            return self.answer(404, {"error": "POST /orders wants an order with an id"})
        self.attempt(lambda: self.answer(201, self.server.database.use(lambda c: place(c, order))))

    def do_GET(self):
        use = self.server.database.use
        path, _, query = self.path.partition("?")
        if path == "/health":
            self.attempt(lambda: self.answer(200, {"ok": True, "host": socket.gethostname(), "orders": use(lambda c: one(c, "SELECT count(*) FROM orders"))[0]}))
        elif path == "/orders" and "ids" in urllib.parse.parse_qs(query):

            def ids(cursor):
                cursor.execute("SELECT id FROM orders")
                return "".join(f"{row[0]}\n" for row in cursor.fetchall())

            self.attempt(lambda: self.answer(200, use(ids), "text/plain"))
        elif path.startswith("/orders/"):
            found = []
            self.attempt(lambda: found.append(use(lambda c: one(c, "SELECT id FROM orders WHERE id = %s", path.rpartition("/")[2]))))
            if found:
                self.answer(200 if found[0] else 404, {"id": found[0] and found[0][0]})
        else:
            self.answer(404, {"error": "there is no such page"})


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    config = settings(sys.argv[1])
    server = Server(("0.0.0.0", int(config["port"])), Handler)
    server.database = Database(config["database"])
    # The first order should not wait for the driver to be read.
    try:
        server.database.use(lambda c: one(c, "SELECT 1"))
    except Exception as e:
        print(f"the database does not answer yet: {e}", flush=True)
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
            s.send(b"READY=1")
    print(f"the shop listens on port {config['port']}, database {config['database']}", flush=True)
    server.serve_forever()


main()
