//! The relay: a program on a host that connects to a socket as another user, or where the SSH server forwards nothing, and carries bytes
//! both ways. In perl, which Debian always has, and in this program.

/// Connects, says `ok` or why not, then carries bytes both ways. Two processes, since each way must go on while the other is stuck.
pub(super) const PERL: &str = r#"use strict; use Socket; use Errno;
my ($user,$kind,@a)=@ARGV; my $s;
binmode STDIN; binmode STDOUT; $|=1;
sub fail { my ($w,$t)=@_; $t=~s/\s+/ /g; syswrite STDOUT,"no $w $t\n"; exit 1 }
sub failed { my $t="$!"; fail($!{ENOENT}||$!{ENOTDIR}?"absent":$!{ECONNREFUSED}?"refused":$!{EACCES}||$!{EPERM}?"denied":$!{ETIMEDOUT}||$!{EHOSTUNREACH}?"timeout":"other",$t) }
if ($user ne "") {
  my @u=getpwnam $user; @u or fail("other","there is no user $user");
  my @g=($u[3]); setgrent; while (my @e=getgrent) { push @g,$e[2] if grep { $_ eq $user } split / /,$e[3] } endgrent;
  $!=0; $)=join " ",$u[3],@g; $(=$u[3]; $<=$u[2]; $>=$u[2];
  fail("denied","cannot become $user") if $< != $u[2] || $> != $u[2] || ($u[2] && ($) =~ /(^| )0( |$)/) && !grep { $_==0 } @g);
}
if ($kind eq "unix") { socket($s,PF_UNIX,SOCK_STREAM,0) && connect($s,pack_sockaddr_un($a[0])) or failed() }
else {
  my ($e,@r)=Socket::getaddrinfo($a[0],$a[1],{socktype=>SOCK_STREAM}); fail("other","$e") if $e;
  my $ok; for my $r (@r) { if (socket($s,$r->{family},SOCK_STREAM,0) && connect($s,$r->{addr})) { $ok=1; setsockopt($s,6,1,1); last } }
  failed() unless $ok;
}
syswrite STDOUT,"ok\n";
sub carry { my ($f,$t)=@_; while (1) { my $n=sysread $f,my $b,65536; next if !defined $n && $!{EINTR}; return unless $n; my $o=0; while ($o<$n) { my $w=syswrite $t,$b,$n-$o,$o; next if !defined $w && $!{EINTR}; return unless defined $w; $o+=$w } } }
my $p=fork; defined $p or exit 1;
if (!$p) { carry(\*STDIN,$s); shutdown $s,1; exit 0 }
close STDIN; carry($s,\*STDOUT); kill 9,$p; waitpid $p,0; exit 0;
"#;

/// Serves `runbook __helper relay USER KIND WHERE…`; what [`PERL`] does. Returns the exit status.
pub(super) fn serve(args: &[String]) -> i32 {
    match connect_here(args) {
        Ok((read, write, end)) => carry_here(read, write, end),
        Err((reason, text)) => {
            println!("no {reason} {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
            1
        }
    }
}

type Halves = (Box<dyn std::io::Read + Send>, Box<dyn std::io::Write + Send>, Box<dyn Fn() + Send>);

fn connect_here(args: &[String]) -> std::result::Result<Halves, (&'static str, String)> {
    use std::io::ErrorKind as K;
    let failed = |e: std::io::Error| {
        let reason = match e.kind() {
            K::NotFound | K::NotADirectory => "absent",
            K::ConnectionRefused => "refused",
            K::PermissionDenied => "denied",
            K::TimedOut | K::HostUnreachable => "timeout",
            _ => "other",
        };
        (reason, e.to_string())
    };
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let [user, place @ ..] = words.as_slice() else { return Err(("other", "no place is given".into())) };
    if !user.is_empty() {
        become_user(user).map_err(|e| ("denied", format!("cannot become {user}: {e}")))?;
    }
    match place {
        ["unix", path] => {
            let s = std::os::unix::net::UnixStream::connect(path).map_err(failed)?;
            let (r, w) = (s.try_clone().map_err(failed)?, s.try_clone().map_err(failed)?);
            Ok((Box::new(r), Box::new(w), Box::new(move || drop(s.shutdown(std::net::Shutdown::Write)))))
        }
        ["tcp", name, port] => {
            let port = port.parse::<u16>().map_err(|e| ("other", e.to_string()))?;
            let s = std::net::TcpStream::connect((*name, port)).map_err(failed)?;
            s.set_nodelay(true).map_err(failed)?;
            let (r, w) = (s.try_clone().map_err(failed)?, s.try_clone().map_err(failed)?);
            Ok((Box::new(r), Box::new(w), Box::new(move || drop(s.shutdown(std::net::Shutdown::Write)))))
        }
        _ => Err(("other", format!("not a place: {}", place.join(" ")))),
    }
}

fn become_user(name: &str) -> std::io::Result<()> {
    let user = nix::unistd::User::from_name(name)?.ok_or_else(|| std::io::Error::other("there is no such user"))?;
    let text = std::ffi::CString::new(name)?;
    nix::unistd::initgroups(&text, user.gid)?;
    nix::unistd::setgid(user.gid)?;
    nix::unistd::setuid(user.uid)?;
    Ok(())
}

fn carry_here(mut read: Box<dyn std::io::Read + Send>, mut write: Box<dyn std::io::Write + Send>, end: Box<dyn Fn() + Send>) -> i32 {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    // Not through the buffers of the standard library, which wait for line ends.
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(std::fs::File::from);
    let (Ok(mut stdin), Ok(mut stdout)) = (own(std::io::stdin().as_fd()), own(std::io::stdout().as_fd())) else { return 1 };
    if stdout.write_all(b"ok\n").is_err() {
        return 1;
    }
    std::thread::spawn(move || {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = stdin.read(&mut buf) {
            if write.write_all(buf.get(..n).unwrap_or_default()).is_err() {
                break;
            }
        }
        end();
    });
    let mut buf = vec![0; 64 << 10];
    while let Ok(n @ 1..) = read.read(&mut buf) {
        if stdout.write_all(buf.get(..n).unwrap_or_default()).is_err() {
            break;
        }
    }
    0
}
