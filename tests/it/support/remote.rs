//! Servers of backup repositories: `moto` as S3 with checked signatures, and rclone's REST server for restic.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn wait_for(port: u16) {
    let began = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing listens on {port}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An S3 server that checks signatures, and the key of a user of it; killed on drop.
pub struct S3 {
    child: Child,
    pub port: u16,
    pub id: String,
    pub key: String,
}

impl S3 {
    /// Starts one, without any bucket.
    pub fn start() -> Option<S3> {
        let (server, python) = (super::python::program("moto_server")?, super::python::program("python")?);
        let port = super::free_port();
        // The three requests that make the user are the last that need no signature.
        let child = Command::new(server)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", "3")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto_server starts");
        let mut s = S3 { child, port, id: String::new(), key: String::new() };
        wait_for(port);
        let code = "import boto3, json, sys\n\
            iam = boto3.client('iam', endpoint_url=sys.argv[1], region_name='us-east-1', aws_access_key_id='x', aws_secret_access_key='y')\n\
            iam.create_user(UserName='shop')\n\
            p = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': 's3:*', 'Resource': '*'}]}\n\
            iam.put_user_policy(UserName='shop', PolicyName='all', PolicyDocument=json.dumps(p))\n\
            k = iam.create_access_key(UserName='shop')['AccessKey']\n\
            print(k['AccessKeyId'], k['SecretAccessKey'])";
        let out = Command::new(python).args(["-c", code, &format!("http://127.0.0.1:{port}")]).output().expect("python starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        let (id, key) = out.trim().split_once(' ').expect("a key");
        (s.id, s.key) = (id.into(), key.into());
        Some(s)
    }

    /// Stops it and lets it go on, as a server that is overloaded or cut off for a while.
    pub fn signal(&self, signal: &str) {
        Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill");
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `rclone serve restic` with TLS by an authority of its own; killed on drop.
pub struct Rest {
    dir: PathBuf,
    child: Option<Child>,
    pub port: u16,
}

/// Who may log in.
pub const REST_USER: &str = "shop";
/// With what.
pub const REST_PASSWORD: &str = "p@ss:w/rd of the REST tests";

impl Rest {
    /// Starts one that keeps its files in a folder.
    pub fn start(dir: &Path) -> Option<Rest> {
        if !super::have("rclone") || !super::have("openssl") {
            return None;
        }
        let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca &&\n\
            openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout s.key -out s.csr -subj /CN=localhost &&\n\
            echo subjectAltName=IP:127.0.0.1 >ext && openssl x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out s.pem -extfile ext";
        let made = Command::new("sh").args(["-c", script]).current_dir(dir).output().expect("sh");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut r = Rest { dir: dir.to_path_buf(), child: None, port: super::free_port() };
        r.up();
        Some(r)
    }

    /// Starts the process (again).
    pub fn up(&mut self) {
        let child = Command::new("rclone")
            .args(["serve", "restic", "--addr", &format!("127.0.0.1:{}", self.port), "--cert", "s.pem", "--key", "s.key", "./rest"])
            .envs([("RCLONE_USER", REST_USER), ("RCLONE_PASS", REST_PASSWORD), ("RCLONE_CONFIG", "/dev/null")])
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rclone starts");
        self.child = Some(child);
        wait_for(self.port);
    }

    /// Kills it.
    pub fn down(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.down();
    }
}
