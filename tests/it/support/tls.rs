//! A certificate authority and real TLS servers (`openssl s_server`) on loopback, in a folder of their own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// An authority of its own. Its folder goes with it.
pub struct Ca {
    dir: tempfile::TempDir,
}

/// What a server's certificate says.
pub struct Certificate<'a> {
    /// Its `subjectAltName`, such as `DNS:shop.example.test,IP:127.0.0.1`.
    pub names: &'a str,
    /// From when it holds, as `YYMMDDHHMMSSZ`.
    pub from: &'a str,
    /// Until when.
    pub until: &'a str,
    /// Whether an authority between the root and it has signed it.
    pub intermediate: bool,
    /// Whether the server sends that authority's certificate along.
    pub send_chain: bool,
}

impl Default for Certificate<'_> {
    fn default() -> Self {
        Certificate {
            names: "DNS:shop.example.test,IP:127.0.0.1",
            from: "200101000000Z",
            until: "491231235959Z",
            intermediate: false,
            send_chain: true,
        }
    }
}

/// A server; killed on drop.
pub struct Server {
    /// Its port on 127.0.0.1.
    pub port: u16,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CONFIG: &str = "
[ca]
default_ca = own
[own]
new_certs_dir = .
database = index.txt
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[req]
distinguished_name = none
[none]
";

impl Ca {
    /// Makes an authority; `None` where `openssl` is missing.
    pub fn new(name: &str) -> Option<Ca> {
        if !super::have("openssl") {
            return None;
        }
        let ca = Ca { dir: tempfile::tempdir().expect("a temporary folder") };
        std::fs::write(ca.path("ca.cnf"), CONFIG).expect("a configuration");
        std::fs::write(ca.path("index.txt"), "").expect("an index");
        ca.request("root", name);
        ca.openssl("ca -batch -notext -config ca.cnf -selfsign -keyfile root.key -in root.csr -out root.pem -extensions authority -startdate 200101000000Z -enddate 491231235959Z");
        Some(ca)
    }

    /// The authority's certificate, in PEM.
    pub fn pem(&self) -> String {
        std::fs::read_to_string(self.path("root.pem")).expect("the authority's certificate")
    }

    /// The file with the authority's certificate.
    pub fn file(&self) -> PathBuf {
        self.path("root.pem")
    }

    /// Starts a server with a certificate of this authority. It answers GET with a page about the connection.
    pub fn serve(&self, c: &Certificate<'_>, options: &str) -> Server {
        self.sign(c);
        let chain = if c.intermediate && c.send_chain { " -cert_chain between.pem" } else { "" };
        self.start(&format!("-cert server.pem -key server.key{chain} {options}"))
    }

    /// A certificate of this authority and its key, in PEM, for a server that is not started here.
    pub fn certificate(&self, c: &Certificate<'_>) -> (String, String) {
        self.sign(c);
        let read = |file: &str| std::fs::read_to_string(self.path(file)).expect("a file in PEM");
        (read("server.pem"), read("server.key"))
    }

    fn sign(&self, c: &Certificate<'_>) {
        self.request("server", "a server");
        std::fs::write(self.path("names.cnf"), format!("basicConstraints = CA:FALSE\nsubjectAltName = {}\n", c.names)).expect("extensions");
        let by = if c.intermediate { "between" } else { "root" };
        if c.intermediate {
            self.request("between", "an authority between");
            self.openssl("ca -batch -notext -config ca.cnf -cert root.pem -keyfile root.key -in between.csr -out between.pem -extensions authority -startdate 200101000000Z -enddate 491231235959Z");
        }
        self.openssl(&format!(
            "ca -batch -notext -config ca.cnf -cert {by}.pem -keyfile {by}.key -in server.csr -out server.pem -extfile names.cnf -startdate {} -enddate {}",
            c.from, c.until
        ));
    }

    /// Starts a server with a certificate that it signed itself. `openssl req -x509` makes an authority's of it unless told otherwise.
    pub fn serve_self_signed(&self, authority: bool) -> (Server, String) {
        let plain = if authority { "" } else { " -addext basicConstraints=CA:FALSE" };
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout self.key -out self.pem -days 2 -subj /CN=shop \
             -addext subjectAltName=IP:127.0.0.1{plain}"
        ));
        let pem = std::fs::read_to_string(self.path("self.pem")).expect("a certificate");
        (self.start("-cert self.pem -key self.key"), pem)
    }

    fn request(&self, file: &str, name: &str) {
        let mut c = self.command();
        c.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", "ca.cnf"]);
        c.args(["-keyout", &format!("{file}.key"), "-out", &format!("{file}.csr"), "-subj", &format!("/CN={name}")]);
        done(c);
    }

    fn openssl(&self, arguments: &str) {
        let mut c = self.command();
        c.args(arguments.split_whitespace());
        done(c);
    }

    fn command(&self) -> Command {
        let mut c = Command::new("openssl");
        c.current_dir(self.dir.path()).stdin(Stdio::null());
        c
    }

    fn start(&self, arguments: &str) -> Server {
        let mut child = self
            .command()
            .args(["s_server", "-accept", "127.0.0.1:0", "-www"])
            .args(arguments.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl s_server starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let port = lines.find_map(|l| l.ok()?.strip_prefix("ACCEPT 127.0.0.1:")?.trim().parse().ok()).expect("its port");
        // Read on, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Server { port, child }
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::join(self.dir.path(), file)
    }
}

fn done(mut c: Command) {
    let out = c.output().expect("openssl runs");
    assert!(out.status.success(), "{c:?}: {}", String::from_utf8_lossy(&out.stderr));
}
