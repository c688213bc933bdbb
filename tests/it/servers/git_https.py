"""`git http-backend` behind TLS with basic authentication, and servers that misbehave. Prints its port, then serves until it is killed.

Usage: git_https.py FOLDER CERTIFICATE KEY USER TOKEN_FILE MODE
Modes: plain; silent (accepts and never speaks); hang (TLS works, answers never come); redirect=URL; echo (refuses and repeats the credential).
"""
import base64, http.server, os, socket, socketserver, ssl, subprocess, sys, time

folder, certificate, key, user, token_file, mode = sys.argv[1:]
expected = "Basic " + base64.b64encode((user + ":" + open(token_file).read().strip()).encode()).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def plain(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mode == "hang":
            time.sleep(600)
        if mode.startswith("redirect="):
            return self.plain(302, [("Location", mode[len("redirect="):] + self.path)])
        given = self.headers.get("Authorization")
        if given != expected and not self.path.startswith("/public/"):
            return self.plain(401, [("WWW-Authenticate", 'Basic realm="git"')])
        if mode == "echo":
            secret = base64.b64decode(expected[6:]).decode() + " " + expected
            return self.plain(403, [("Content-Type", "text/plain")], ("no access with " + secret).encode())
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": folder, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query,
            "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": user, "REMOTE_ADDR": "127.0.0.1", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent",
            "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "http.receivepack", "GIT_CONFIG_VALUE_1": "true",
        }
        answer = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line]
        status = [value for name, value in headers if name == "Status"]
        self.plain(int(status[0][:3]) if status else 200, [(n, v) for n, v in headers if n != "Status"], content)

    do_GET = do_POST = serve


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def finish_request(self, request, address):
        if mode == "silent":
            time.sleep(600)
        # In the thread of the connection, so that a client that does not like us stops nobody else.
        Handler(context.wrap_socket(request, server_side=True), address, self)

    def handle_error(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
