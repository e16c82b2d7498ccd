//! A network switch between the engines of a test, in a namespace of its own: it is gone with its process, and so is every link to it.

use std::process::{Child, Command, Stdio};

use super::docker::Engine;

/// A switch; gone on drop.
pub struct Switch(Child);

impl Switch {
    /// Makes one. `None` (or a failure under CI) where that cannot be done.
    pub fn new() -> Option<Switch> {
        if !super::have("ip") || !super::have("nsenter") {
            return None;
        }
        let script = "ip link set lo up; ip link add br0 type bridge; ip link set br0 up; echo up; exec sleep 1000000";
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut said = [0; 3];
        let read = std::io::Read::read_exact(child.stdout.as_mut().expect("its output"), &mut said);
        assert!(read.is_ok(), "no namespace with a bridge can be made");
        Some(Switch(child))
    }

    /// Plugs an engine in, which has this address then.
    pub fn plug(&self, e: &Engine, address: &str) {
        let port = format!("p{}", address.rsplit('.').next().expect("a number"));
        let script = format!(
            "set -e; ip link add {port} type veth peer name eth0 netns {}; ip link set {port} master br0; ip link set {port} up",
            e.first()
        );
        let own = self.0.id().to_string();
        assert!(Command::new("nsenter").args(["-t", &own, "-n", "sh", "-c", &script]).status().expect("nsenter").success());
        let script = format!("set -e; ip addr add {address}/24 dev eth0; ip link set eth0 up");
        assert!(e.inside().args(["sh", "-c", &script]).status().expect("nsenter").success());
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
