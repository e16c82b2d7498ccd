//! Signed requests and answers (RFC 8945) with the lab's one key.

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::tsig::{TSIG, TsigAlgorithm, TsigError, make_tsig_record};
use hickory_proto::rr::{Name, TSigner};
use runbook_core::Result;

use super::fqdn;
use crate::failed;

/// How far clocks may be apart, in seconds.
const FUDGE: u16 = 300;

pub(super) struct Key {
    signer: TSigner,
}

/// What a request's signature is worth.
pub(crate) enum Verdict {
    /// There was none.
    Unsigned,
    /// It holds; the answer is signed over its MAC.
    Good { mac: Vec<u8> },
    /// The key or algorithm is not known here.
    BadKey { name: Name, tsig: Box<TSIG> },
    /// The MAC is wrong.
    BadSig { tsig: Box<TSIG> },
    /// The MAC holds and the time is too far off.
    BadTime { tsig: Box<TSIG> },
}

impl Verdict {
    /// Whether the request must be answered NOTAUTH and not acted upon.
    pub fn refuses(&self) -> bool {
        !matches!(self, Verdict::Unsigned | Verdict::Good { .. })
    }

    /// Whether the request comes from the key's holder.
    pub fn trusted(&self) -> bool {
        matches!(self, Verdict::Good { .. })
    }
}

impl Key {
    pub fn new(name: &str, secret: Vec<u8>) -> Result<Key> {
        let signer = TSigner::new(secret, TsigAlgorithm::HmacSha256, fqdn(name)?, FUDGE).map_err(|e| failed("the TSIG key", e))?;
        Ok(Key { signer })
    }

    pub fn verify(&self, bytes: &[u8], request: &Message, now: u64) -> Verdict {
        let Some(record) = request.signature() else { return Verdict::Unsigned };
        let tsig = Box::new(record.data.clone());
        if &record.name != self.signer.signer_name() || &tsig.algorithm != self.signer.algorithm() {
            return Verdict::BadKey { name: record.name.clone(), tsig };
        }
        // The library subtracts the fudge from the time without a check.
        if tsig.time < u64::from(tsig.fudge) {
            return Verdict::BadSig { tsig };
        }
        match self.signer.verify_message_byte(bytes, None, true) {
            Ok((mac, ..)) if now.abs_diff(tsig.time) <= u64::from(FUDGE.min(tsig.fudge)) => Verdict::Good { mac },
            Ok(_) => Verdict::BadTime { tsig },
            Err(_) => Verdict::BadSig { tsig },
        }
    }

    /// Encodes an answer, with the TSIG record that the request's signature calls for.
    pub fn seal(&self, response: &mut Message, verdict: &Verdict, now: u64) -> Option<Vec<u8>> {
        let id = response.metadata.id;
        let algorithm = || self.signer.algorithm().clone();
        // RFC 8945, 5.2: BADKEY and BADSIG go unsigned; BADTIME is signed, with the asker's time and ours in "other".
        let (name, tsig, mac) = match verdict {
            Verdict::Unsigned => return response.to_vec().ok(),
            Verdict::Good { mac } => {
                (self.signer.signer_name().clone(), TSIG::new(algorithm(), now, FUDGE, vec![], id, None, vec![]), Some(mac))
            }
            Verdict::BadKey { name, tsig } => {
                let t = TSIG::new(tsig.algorithm.clone(), tsig.time, tsig.fudge, vec![], id, Some(TsigError::BadKey), vec![]);
                (name.clone(), t, None)
            }
            Verdict::BadSig { tsig } => {
                let t = TSIG::new(algorithm(), tsig.time, tsig.fudge, vec![], id, Some(TsigError::BadSig), vec![]);
                (self.signer.signer_name().clone(), t, None)
            }
            Verdict::BadTime { tsig } => {
                let other = now.to_be_bytes().get(2..)?.to_vec();
                let t = TSIG::new(algorithm(), tsig.time, FUDGE, vec![], id, Some(TsigError::BadTime), other);
                (self.signer.signer_name().clone(), t, Some(&tsig.mac))
            }
        };
        let tsig = match mac {
            None => tsig,
            Some(mac) => {
                let plain = response.to_vec().ok()?;
                let tbs = self.signer.encode_response_tbs(mac, &plain, &tsig).ok()?;
                tsig.set_mac(self.signer.sign(&tbs).ok()?)
            }
        };
        response.set_signature(Box::new(make_tsig_record(name, tsig)));
        response.to_vec().ok()
    }
}
