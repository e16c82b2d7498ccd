//! A pseudo-terminal with somebody in front of it: what the binary writes goes through a real terminal emulation, what is typed comes to
//! it as keys do, Ctrl-C included.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A process on a terminal; killed on drop.
pub struct Screen {
    child: Child,
    master: File,
    seen: Arc<Mutex<Seen>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

struct Seen {
    terminal: vt100::Parser,
    raw: Vec<u8>,
}

impl Screen {
    /// Starts a program on a terminal of this size.
    pub fn start(exe: &Path, args: &[&str], dir: &Path, rows: u16, columns: u16, env: &[(&str, &str)]) -> Screen {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let flags = i32::try_from(OpenptFlags::NOCTTY.bits()).unwrap();
        let slave = OpenOptions::new().read(true).write(true).custom_flags(flags).open(name).unwrap();
        tcsetwinsize(&master, size(rows, columns)).unwrap();
        // The terminal becomes the controlling one, so that Ctrl-C is a signal.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(exe).args(args).current_dir(dir).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command.env_remove("SSH_CLIENT").env_remove("CI").envs(env.iter().copied());
        let io = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(io()).stdout(io()).stderr(io()).spawn().unwrap();
        drop((command, slave));
        let seen = Arc::new(Mutex::new(Seen { terminal: vt100::Parser::new(rows, columns, 1000), raw: vec![] }));
        let master = File::from(master);
        let (mut from, to) = (master.try_clone().unwrap(), seen.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with an error once nobody has the other side open any more.
            while let Ok(n) = from.read(&mut buffer)
                && n > 0
            {
                let mut seen = to.lock().unwrap();
                seen.terminal.process(&buffer[..n]);
                seen.raw.extend_from_slice(&buffer[..n]);
            }
        });
        Screen { child, master, seen, reader: Some(reader) }
    }

    /// What the terminal shows now, without the blanks at the ends of lines.
    pub fn text(&self) -> String {
        let seen = self.seen.lock().unwrap();
        let text: String = seen.terminal.screen().contents();
        text.lines().map(|l| format!("{}\n", l.trim_end())).collect::<String>().trim_end().to_string()
    }

    /// Everything that was written, with its control sequences.
    pub fn raw(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap().raw).into_owned()
    }

    /// Waits until the terminal shows this.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.text().contains(text) {
            assert!(Instant::now() < end, "{text:?} does not come:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types this.
    pub fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for a question and answers it with a line.
    #[track_caller]
    pub fn answer(&mut self, question: &str, line: &str) {
        self.wait_for(question);
        // What was typed before the question stood there is no answer to it.
        std::thread::sleep(Duration::from_millis(100));
        self.keys(&format!("{line}\n"));
    }

    /// Makes the terminal another size, as when its window is dragged.
    pub fn resize(&self, rows: u16, columns: u16) {
        self.seen.lock().unwrap().terminal.screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.master, size(rows, columns)).unwrap();
    }

    /// The exit status, once it has ended and everything that it wrote was read.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let end = Instant::now() + Duration::from_secs(40);
        let status = loop {
            if let Some(s) = self.child.try_wait().unwrap() {
                break s;
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        };
        // What it started may hold the terminal open a little longer.
        let reader = self.reader.take();
        while reader.as_ref().is_some_and(|r| !r.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        status.code().unwrap_or(-1)
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
