//! A key in a PKCS#11 token (OASIS PKCS #11 2.40 and later) as a key service: an AES-256 key that the token seals with by
//! AES-GCM and never gives away. The module is the operator's choice and runs inside the broker, like any library.
//!
//! Each use loads the module, logs in, works and logs out again: a start and a new slot need the token, serving does not.

use std::sync::{Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error as Fault, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use super::key_service::TokenPlace;
use super::secret::Secret;
use crate::limits::PASSPHRASE_BYTES_MAX;
use crate::seal::key_service::{KeyService, Service, ServiceError};
use crate::seal::{Kek, random};
use crate::store::line_from_file;

const IV_BYTES: usize = 12;
const TAG_BITS: u64 = 128;
const KEY_BYTES: u64 = 32;
/// What is sealed is one key, and its tag follows it.
const SEALED_BYTES: usize = IV_BYTES + 32 + 16;

/// A module has one state for the whole process, so one use of it at a time.
static MODULE: Mutex<()> = Mutex::new(());

/// A token's key, with what it takes to use it.
pub(super) struct Token {
    place: TokenPlace,
    pin: Secret,
}

impl Token {
    /// Looks for the key, logging in as the token's user.
    ///
    /// # Errors
    /// `E_PKCS11_MODULE`, `E_PKCS11_TOKEN`, `E_PKCS11_PIN`, `E_PKCS11_KEY`, `E_PKCS11_KEY_KIND`, `E_PKCS11_FAILED`.
    pub(super) fn find(place: &TokenPlace) -> Result<Token, ServiceError> {
        let token = Token { place: place.clone(), pin: pin(place)? };
        tracing::info!(module = %place.module.display(), "asking the PKCS#11 token");
        token.with_key(|session, key| {
            if can_leave(session, key) {
                tracing::warn!("the token would give this key away (CKA_EXTRACTABLE, or not CKA_SENSITIVE)");
            }
            Ok(())
        })?;
        Ok(token)
    }

    fn with_key<T>(
        &self,
        work: impl FnOnce(&Session, ObjectHandle) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let _alone = MODULE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.place.module.display();
        let unusable = |fault: Fault| {
            let reason = format!("the PKCS#11 module {path} cannot be used: {}", text(&fault));
            failure("E_PKCS11_MODULE", reason, "name the token's module (a .so file) and check its settings")
        };
        let module = Pkcs11::new(&self.place.module).map_err(unusable)?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        module.initialize(arguments).map_err(unusable)?;
        let done = self.in_session(&module, work);
        // The session is closed, and what the module says now changes nothing.
        let _ = module.finalize();
        done
    }

    fn in_session<T>(
        &self,
        module: &Pkcs11,
        work: impl FnOnce(&Session, ObjectHandle) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let slot = self.slot(module)?;
        let session = module.open_ro_session(slot).map_err(failed)?;
        match session.login(UserType::User, Some(&AuthPin::from(self.pin.expose()))) {
            Ok(()) | Err(Fault::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Fault::Pkcs11(fault, function)) if is_of_the_pin(&fault) => {
                return Err(self.refused_pin(&format!("{function:?}: {fault:?}")));
            }
            Err(fault) => return Err(failed(fault)),
        }
        let key = self.key(&session)?;
        let mechanisms = module.get_mechanism_list(slot).map_err(failed)?;
        if !mechanisms.contains(&MechanismType::AES_GCM) {
            return Err(self.wrong_kind("the token does not do AES-GCM (CKM_AES_GCM)"));
        }
        work(&session, key)
    }

    /// The one slot whose token has the label.
    fn slot(&self, module: &Pkcs11) -> Result<Slot, ServiceError> {
        let (mut found, mut labels) = (Vec::new(), Vec::new());
        for slot in module.get_slots_with_token().map_err(failed)? {
            // One that is pulled out at this moment is not there.
            let Ok(token) = module.get_token_info(slot) else { continue };
            if token.label().trim_end() == self.place.token {
                found.push((slot, token));
            } else if token.token_initialized() {
                labels.push(token.label().trim_end().to_owned());
            }
        }
        let remedy = "plug the token in, or name one of those that are there (at_rest.kek.pkcs11.token)";
        let [(slot, token)] = found.as_slice() else {
            let count = if found.is_empty() { "no" } else { "more than one" };
            let reason = format!("{count} token has the label `{}`; others: {labels:?}", self.place.token);
            return Err(ServiceError {
                is_passing: found.is_empty(),
                ..failure("E_PKCS11_TOKEN", reason, remedy)
            });
        };
        if token.user_pin_locked() {
            return Err(self.refused_pin("it is locked"));
        }
        // A broker that is restarted over and over would lock the token.
        if token.user_pin_final_try() {
            return Err(self.refused_pin("one try is left, and it is not taken: log in once by hand"));
        }
        Ok(*slot)
    }

    fn key(&self, session: &Session) -> Result<ObjectHandle, ServiceError> {
        let label = &self.place.label;
        let labelled = Attribute::Label(label.clone().into_bytes());
        let secret = [labelled.clone(), Attribute::Class(ObjectClass::SECRET_KEY)];
        let keys = session.find_objects(&secret).map_err(failed)?;
        let key = match keys.as_slice() {
            [key] => *key,
            [] if !session.find_objects(&[labelled]).map_err(failed)?.is_empty() => {
                return Err(self.wrong_kind("it is no secret key"));
            }
            _ => {
                let count = if keys.is_empty() { "no key" } else { "more than one key" };
                let reason = format!("{count} in token `{}` has the label `{label}`", self.place.token);
                let remedy = "make one AES-256 key with this label (pkcs11-tool --keygen --key-type AES:32)";
                return Err(failure("E_PKCS11_KEY", reason, remedy));
            }
        };
        let wanted =
            [AttributeType::KeyType, AttributeType::ValueLen, AttributeType::Encrypt, AttributeType::Decrypt];
        for attribute in session.get_attributes(key, &wanted).map_err(failed)? {
            match attribute {
                Attribute::KeyType(kind) if kind != KeyType::AES => {
                    return Err(self.wrong_kind("it is no AES key"));
                }
                Attribute::ValueLen(bytes) if *bytes != KEY_BYTES => {
                    return Err(self.wrong_kind(&format!("it has {} bits", *bytes * 8)));
                }
                Attribute::Encrypt(false) | Attribute::Decrypt(false) => {
                    return Err(self.wrong_kind("it may not encrypt and decrypt"));
                }
                _ => {}
            }
        }
        Ok(key)
    }

    fn wrong_kind(&self, why: &str) -> ServiceError {
        let TokenPlace { token, label, .. } = &self.place;
        let reason = format!("the key `{label}` in token `{token}` is of the wrong kind: {why}");
        failure("E_PKCS11_KEY_KIND", reason, "an AES-256 key with CKA_ENCRYPT and CKA_DECRYPT is needed")
    }

    fn refused_pin(&self, why: &str) -> ServiceError {
        let reason = format!("the PIN does not open token `{}`: {why}", self.place.token);
        failure("E_PKCS11_PIN", reason, "correct at_rest.kek.pkcs11.pin_file; each try may be counted")
    }
}

impl KeyService for Token {
    fn service(&self) -> Service {
        Service::Pkcs11
    }

    fn seal(&self, key: &[u8; 32], context: &[u8]) -> Result<Vec<u8>, ServiceError> {
        self.with_key(|session, handle| {
            let iv = random().map_err(|e| failure("E_SYSTEM", e.to_string(), "look at the system's log"))?;
            encrypt(session, handle, iv, key, context).map_err(failed)
        })
    }

    fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Option<Kek>, ServiceError> {
        let Some((iv, sealed)) = sealed.split_first_chunk::<IV_BYTES>() else { return Ok(None) };
        if IV_BYTES + sealed.len() != SEALED_BYTES {
            return Ok(None);
        }
        self.with_key(|session, handle| {
            match decrypt(session, handle, *iv, sealed, context) {
                Ok(opened) => {
                    let key = opened.first_chunk::<32>().filter(|_| opened.len() == 32);
                    Ok(key.map(|key| Kek::take(&mut Zeroizing::new(*key))))
                }
                Err(Fault::Pkcs11(fault, Function::Decrypt)) if is_of_the_tag(&fault) => Ok(None),
                // So SoftHSM says it. Whether the token as such works is easily seen.
                Err(Fault::Pkcs11(RvError::GeneralError, Function::Decrypt)) if works(session, handle) => {
                    Ok(None)
                }
                Err(fault) => Err(failed(fault)),
            }
        })
    }
}

/// The nonce, the ciphertext and its tag.
fn encrypt(
    session: &Session,
    key: ObjectHandle,
    mut iv: [u8; IV_BYTES],
    text: &[u8],
    context: &[u8],
) -> Result<Vec<u8>, Fault> {
    let parameters = GcmParams::new(&mut iv, context, TAG_BITS.into())?;
    let sealed = session.encrypt(&Mechanism::AesGcm(parameters), key, text)?;
    // Some tokens choose the nonce themselves, and have written it over this one.
    Ok([&iv[..], &sealed].concat())
}

fn decrypt(
    session: &Session,
    key: ObjectHandle,
    mut iv: [u8; IV_BYTES],
    sealed: &[u8],
    context: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let parameters = GcmParams::new(&mut iv, context, TAG_BITS.into())?;
    session.decrypt(&Mechanism::AesGcm(parameters), key, sealed).map(Zeroizing::new)
}

/// Whether the key opens what it has just sealed.
fn works(session: &Session, key: ObjectHandle) -> bool {
    let text = [0; 32];
    let sealed = random().ok().and_then(|iv| encrypt(session, key, iv, &text, b"").ok());
    let Some((iv, sealed)) = sealed.as_deref().and_then(<[u8]>::split_first_chunk) else { return false };
    decrypt(session, key, *iv, sealed, b"").is_ok_and(|opened| *opened == text)
}

fn pin(place: &TokenPlace) -> Result<Secret, ServiceError> {
    let unreadable =
        |reason: String| failure("E_PKCS11_PIN", reason, "put the PIN into a file of mode 0400, on one line");
    match (&place.pin, &place.pin_file) {
        (Some(pin), _) => Ok(pin.clone()),
        (None, Some(path)) => {
            let bytes = line_from_file(path, PASSPHRASE_BYTES_MAX)
                .map_err(|reason| unreadable(reason.to_string()))?;
            let line = std::str::from_utf8(&bytes).ok().filter(|line| !line.is_empty());
            let line = line.ok_or_else(|| unreadable(format!("{}: it holds no PIN", path.display())))?;
            Ok(Secret::new(line.to_owned()))
        }
        (None, None) => Err(unreadable("no PIN was given".into())),
    }
}

fn can_leave(session: &Session, key: ObjectHandle) -> bool {
    let asked = [AttributeType::Extractable, AttributeType::Sensitive];
    // A token that does not tell keeps it.
    let told = session.get_attributes(key, &asked).unwrap_or_default();
    told.iter().any(|it| matches!(it, Attribute::Extractable(true) | Attribute::Sensitive(false)))
}

fn is_of_the_pin(fault: &RvError) -> bool {
    matches!(
        fault,
        RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked
            | RvError::UserPinNotInitialized
    )
}

fn is_of_the_tag(fault: &RvError) -> bool {
    matches!(fault, RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange)
}

fn failed(fault: Fault) -> ServiceError {
    let remedy = "look at the token and its module's log; pkcs11-tool shows what the token can do";
    failure("E_PKCS11_FAILED", format!("the PKCS#11 token failed: {}", text(&fault)), remedy)
}

/// The names of the standard: its sentences are long.
fn text(fault: &Fault) -> String {
    match fault {
        Fault::Pkcs11(fault, function) => format!("{function:?}: {fault:?}"),
        other => other.to_string(),
    }
}

fn failure(code: &'static str, reason: String, remedy: &'static str) -> ServiceError {
    ServiceError { code, reason, remedy, is_passing: false }
}
