//! Users: who may log in, from where, with which password. Hashing is `seal`'s; verifying takes
//! milliseconds on purpose, so callers do it off the reactor.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, PoisonError, RwLock};

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
    gate: Gate,
}

/// Argon2id takes 19 MiB for each login that is checked; thousands that come at once wait for their turn.
struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    fn for_this_machine() -> Gate {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Gate { free: Mutex::new(cores), freed: Condvar::new() }
    }

    fn pass<T>(&self, work: impl FnOnce() -> T) -> T {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |n| *n == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        drop(free);
        let place = Place(self);
        let done = work();
        drop(place);
        done
    }
}

/// Given back even if the work panics.
struct Place<'a>(&'a Gate);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
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
            gate: Gate::for_this_machine(),
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
                self.gate.pass(|| password::verify_nobody(password));
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
        let is_right = self.gate.pass(|| password::verify(&user.password_hash, password));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_passwords_are_hashed_at_once_than_there_are_cores() {
        let gate = Gate { free: Mutex::new(2), freed: Condvar::new() };
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    gate.pass(|| {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        (0..100).for_each(|_| std::thread::yield_now());
                        now.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
        assert_eq!(*gate.free.lock().unwrap(), 2);
    }
}
