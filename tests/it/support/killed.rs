//! Controllers killed at random: what their runs leave behind must be what undisturbed runs leave.

use std::time::{Duration, Instant};

use super::desk::Project;

/// What became of the controllers.
pub struct Killed {
    pub runs: usize,
    pub kills: usize,
    /// How long a run takes that nobody disturbs.
    pub whole: Duration,
}

/// Runs `all.rhai` once undisturbed, and then so many times with its controller killed (SIGKILL) at random moments and the run resumed until it
/// has ended. `before` each run, and `after` it, by its number.
pub fn at_random(p: &Project, rounds: usize, mut before: impl FnMut(usize), mut after: impl FnMut(usize)) -> Killed {
    let words = ["run", "all.rhai", "--env", "test"];
    before(0);
    let began = Instant::now();
    p.expect(&words, 0);
    let mut whole = began.elapsed();
    after(0);
    let runs = || p.json(&["runs"]).1["runs"].as_array().map_or(0, Vec::len);
    let first = runs();
    let (mut kills, mut n) = (0, 0);
    // More of them where runs end before they are killed: then they are faster than the first was.
    while n < rounds || (kills < rounds && n < 4 * rounds) {
        before(n + 1);
        let mut run = p.start(&words);
        let (mut tries, began) = (0, Instant::now());
        loop {
            let until = Instant::now() + whole.mul_f64(0.05 + 0.9 * chance());
            let mut done = None;
            while Instant::now() < until && done.is_none() {
                done = run.0.try_wait().unwrap().map(|s| s.code().unwrap_or(-1));
                std::thread::sleep(Duration::from_millis(5));
            }
            if let Some(status) = done {
                assert_eq!(status, 0, "{}", p.text(&["show"]).1);
                if tries == 0 {
                    whole = whole.min(began.elapsed());
                }
                break;
            }
            run.0.kill().unwrap();
            run.0.wait().unwrap();
            kills += 1;
            tries += 1;
            if runs() < first + n + 1 {
                // Killed before its record began.
                run = p.start(&words);
                continue;
            }
            if p.state() == "finished" {
                // It had ended right before.
                break;
            }
            if tries >= 4 {
                p.expect(&["resume"], 0);
                break;
            }
            run = p.start(&["resume"]);
        }
        n += 1;
        after(n);
    }
    assert!(kills >= rounds, "{kills} kills in {n} runs");
    Killed { runs: n, kills, whole }
}

/// A number from 0 to 1 that nobody can foresee.
pub fn chance() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    f64::from(now.subsec_nanos() / 7 % 1000) / 1000.0
}
