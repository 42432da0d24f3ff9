"""A small server that speaks as much S3 as pyarrow's client asks for: objects in memory, signatures not looked at."""

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    uploads: dict[str, dict[int, bytes]]

    def log_message(self, *_):
        pass

    def _asked(self):
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return unchunked(data) if "aws-chunked" in self.headers.get("Content-Encoding", "") else data

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        headers = {"Content-Length": str(len(body))} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, inner, status=200):
        self._answer(status, f'<?xml version="1.0" encoding="UTF-8"?>{inner}'.encode(), Content_Type="application/xml")

    def do_PUT(self):
        key, query = self._asked()
        data = self._body()
        if "uploadId" in query:
            self.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = data
        else:
            self.objects[key] = data
        self._answer(200, ETag=f'"{hashlib.md5(data).hexdigest()}"')

    def do_POST(self):
        key, query = self._asked()
        self._body()
        if "uploads" in query:
            name = str(len(self.uploads))
            self.uploads[name] = {}
            return self._xml(
                f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            )
        parts = self.uploads[query["uploadId"][0]]
        self.objects[key] = b"".join(parts[n] for n in sorted(parts))
        return self._xml("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self):
        self.objects.pop(self._asked()[0], None)
        self._answer(204)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        key, query = self._asked()
        if "list-type" in query or "/" not in key:
            return self._list(key, query)
        if key not in self.objects:
            return self._xml("<Error><Code>NoSuchKey</Code></Error>", 404)
        data, status, more = self.objects[key], 200, {}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            more = {"Content_Range": f"bytes {begin}-{min(end, len(data) - 1)}/{len(data)}"}
            data, status = data[begin : end + 1], 206
        etag = f'"{hashlib.md5(self.objects[key]).hexdigest()}"'
        return self._answer(status, data, ETag=etag, Last_Modified="Wed, 01 Jan 2020 00:00:00 GMT", **more)

    def _list(self, key, query):
        bucket, _, _ = key.partition("/")
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        names = sorted(k.partition("/")[2] for k in self.objects if k.startswith(f"{bucket}/"))
        found, folders = [], set()
        for name in names:
            if name.startswith(prefix):
                head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                folders.add(prefix + head + mark) if mark else found.append(name)
        inner = "".join(
            f"<Contents><Key>{escape(n)}</Key><Size>{len(self.objects[f'{bucket}/{n}'])}</Size>"
            "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for n in found
        )
        inner += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        count = len(found) + len(folders)
        self._xml(
            f"<ListBucketResult><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>{inner}</ListBucketResult>"
        )


def unchunked(data: bytes) -> bytes:
    """The body of `aws-chunked`: SIZE[;signature] CRLF bytes CRLF …"""
    whole = b""
    while data:
        head, _, data = data.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if not size:
            break
        whole, data = whole + data[:size], data[size + 2 :]
    return whole


@contextmanager
def serving():
    """Yields host:port and the objects by bucket/key."""
    handler = type("Fresh", (Handler,), {"objects": {}, "uploads": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", handler.objects
    server.shutdown()
