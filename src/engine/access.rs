//! Users: who may log in, from where, with which password. Hashing is `seal`'s; verifying takes
//! milliseconds on purpose, so callers do it off the reactor.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::broker::id::RowId;
use crate::seal::password;
use crate::session::port::{Login, LoginRefused, Mechanism};
use crate::store::{RowKind, Store};

use super::engine_core::EngineError;
use super::rows::UserRow;

/// One user.
#[derive(Clone)]
pub struct User {
    pub(super) row: RowId,
    /// Argon2id, PHC string
    pub(super) password_hash: String,
    /// `administrator` and others
    pub tags: Vec<String>,
}

/// All users. Reads are frequent (each login), changes rare.
pub struct Users {
    users: RwLock<HashMap<String, User>>,
    /// who may only come from this machine
    loopback_only: RwLock<HashSet<String>>,
    /// digests of logins that were right, so that a client that opens many connections pays for
    /// Argon2id once; keyed by random bytes of this process, emptied whenever a user changes
    proven: Mutex<HashSet<[u8; 32]>>,
    proof: password::Proof,
}

/// Right logins remembered at once; past that the memory is emptied.
const PROVEN_MAX: usize = 1024;

impl Users {
    pub(super) fn new(users: HashMap<String, User>) -> Result<Users, EngineError> {
        Ok(Users {
            users: RwLock::new(users),
            loopback_only: RwLock::default(),
            proven: Mutex::default(),
            proof: password::Proof::new().map_err(|e| EngineError::Random(e.to_string()))?,
        })
    }

    /// Replaces the list of users who may only log in from this machine (`loopback_users`).
    pub fn set_loopback_only(&self, names: impl IntoIterator<Item = String>) {
        *self.loopback_only.write().unwrap_or_else(PoisonError::into_inner) = names.into_iter().collect();
    }

    /// Checks a login; takes milliseconds, so not on the reactor. The refusal's reason is logged, and
    /// never told to the client.
    pub fn check(&self, login: &Login) -> Result<(), LoginRefused> {
        let Ok(name) = std::str::from_utf8(&login.user) else { return Err(LoginRefused) };
        let mechanism = login.mechanism.name();
        let known = self.users.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let is_right = match (&known, &login.password, login.mechanism) {
            (Some(_), None, Mechanism::External) => true,
            (Some(user), Some(password), Mechanism::Plain | Mechanism::AmqPlain) => {
                self.verify(user, name, password)
            }
            (None, Some(password), _) => {
                // As slow as a wrong password, so that time does not tell which users exist.
                password::verify_nobody(password);
                false
            }
            (_, _, _) => false,
        };
        if !is_right {
            tracing::warn!(mechanism, user = name, "login refused: invalid credentials");
            return Err(LoginRefused);
        }
        let local_only = self.loopback_only.read().unwrap_or_else(PoisonError::into_inner);
        if !login.is_loopback && local_only.contains(name) {
            tracing::warn!(mechanism, user = name, "login refused: user can only connect via localhost");
            return Err(LoginRefused);
        }
        Ok(())
    }

    fn verify(&self, user: &User, name: &str, password: &[u8]) -> bool {
        let digest = self.proof.digest(&[name.as_bytes(), user.password_hash.as_bytes(), password]);
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.contains(&digest) {
            return true;
        }
        drop(proven);
        let is_right = password::verify(&user.password_hash, password);
        if is_right {
            proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
            if proven.len() >= PROVEN_MAX {
                proven.clear();
            }
            proven.insert(digest);
        }
        is_right
    }

    pub(super) fn ensure(
        &self,
        store: &Store,
        name: &str,
        password: &[u8],
        tags: &[String],
    ) -> Result<(), EngineError> {
        let known = self.users.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(user) = &known
            && user.tags == tags
            && password::verify(&user.password_hash, password)
        {
            return Ok(());
        }
        let failed = |reason: String| EngineError::User { user: name.to_owned(), reason };
        let password_hash = password::hash(password).map_err(|e| failed(e.to_string()))?;
        let row = known.map_or_else(|| store.next_row_id(), |user| user.row);
        let user = User { row, password_hash, tags: tags.to_vec() };
        store.appender().put_row(RowKind::User, row, UserRow::of(name, &user).encode());
        self.users.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), user);
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// Names and tags, sorted, for lists.
    pub fn list(&self) -> Vec<(String, Vec<String>)> {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = users.iter().map(|(name, user)| (name.clone(), user.tags.clone())).collect();
        list.sort();
        list
    }
}
