// amqplib's promise and callback interfaces: node amqplib.js PACKAGE CASE, with AMQP_URL and AMQP_CA.
'use strict';

// Node 18 takes the first address of localhost only; the broker listens on IPv4.
require('node:dns').setDefaultResultOrder('ipv4first');

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');

const [library, wanted] = process.argv.slice(2);
const promises = require(library);
const callbacks = require(path.posix.join(library, 'callback_api'));
const tls = { ca: [fs.readFileSync(process.env.AMQP_CA)], servername: 'localhost' };
const connect = () => promises.connect(process.env.AMQP_URL, tls);

const numbers = (count) => Array.from({ length: count }, (_, number) => number);

// Consumes so many messages and acknowledges each.
function take(channel, queue, count) {
  return new Promise((resolve, reject) => {
    const got = [];
    channel.consume(queue, (message) => {
      if (message === null) return reject(new Error('the consumer was cancelled'));
      got.push(message);
      channel.ack(message);
      if (got.length === count) resolve(got);
    }).catch(reject);
  });
}

const cases = {
  // A confirm channel with its callbacks, bodies of all sizes up to several frames, headers of all types.
  async confirms() {
    const connection = await connect();
    const producer = await connection.createConfirmChannel();
    const consumer = await connection.createChannel();
    const { queue } = await producer.assertQueue('', { exclusive: true });
    const confirmed = [];
    const body = (number) => Buffer.alloc(number % 100 === 0 ? 20000 : number % 200, number % 256);
    const headers = (number) => ({ number, text: `n${number}`, yes: true, none: null, list: [1, 'two', { three: 3 }], real: number / 2 });
    for (const number of numbers(2000)) {
      const options = { headers: headers(number), persistent: number % 2 === 0, messageId: String(number), mandatory: true };
      producer.sendToQueue(queue, body(number), options, (error) => {
        assert.equal(error, null);
        confirmed.push(number);
      });
    }
    await producer.waitForConfirms();
    assert.deepEqual(confirmed.sort((a, b) => a - b), numbers(2000));
    await consumer.prefetch(100);
    const got = await take(consumer, queue, 2000);
    got.forEach((message, number) => {
      assert.equal(message.properties.messageId, String(number));
      assert.deepEqual(message.properties.headers, headers(number));
      assert.equal(message.properties.deliveryMode, number % 2 === 0 ? 2 : 1);
      assert.ok(message.content.equals(body(number)));
      assert.equal(message.fields.redelivered, false);
    });
    assert.equal((await producer.checkQueue(queue)).messageCount, 0);
    await connection.close();
  },

  // Each unroutable mandatory message comes back, before its confirm.
  async returns() {
    const connection = await connect();
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue('', { exclusive: true });
    const returned = [];
    channel.on('return', (message) => {
      assert.equal(message.fields.replyCode, 312);
      assert.equal(message.fields.replyText, 'NO_ROUTE');
      returned.push(Number(message.content));
    });
    for (const number of numbers(300)) {
      const nowhere = number % 3 === 0;
      channel.publish('', nowhere ? `${queue}-nowhere` : queue, Buffer.from(String(number)), { mandatory: true }, () => {
        if (nowhere) assert.ok(returned.includes(number), 'a return comes before its confirm');
      });
    }
    await channel.waitForConfirms();
    assert.deepEqual(returned, numbers(300).filter((number) => number % 3 === 0));
    assert.equal((await channel.checkQueue(queue)).messageCount, 200);
    await connection.close();
  },

  // An unequal declaration closes the channel with 406 and its reason; the connection stays.
  async unequal() {
    const connection = await connect();
    const owner = await connection.createChannel();
    const queue = `interop-${process.pid}-${Date.now()}`;
    await owner.assertQueue(queue, { exclusive: true, messageTtl: 60000 });
    for (const [options, reason] of [
      [{ exclusive: true, messageTtl: 1000 }, /PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue '.*' in vhost '\/': received/],
      [{ exclusive: true, autoDelete: true, messageTtl: 60000 }, /PRECONDITION_FAILED - inequivalent arg 'auto_delete'/],
    ]) {
      const channel = await connection.createChannel();
      const closed = new Promise((resolve) => channel.on('error', resolve));
      await assert.rejects(channel.assertQueue(queue, options), reason);
      assert.equal((await closed).code, 406);
    }
    const channel = await connection.createChannel();
    channel.on('error', () => {});
    await assert.rejects(channel.checkQueue(`${queue}-missing`), /404 \(NOT-FOUND\)|NOT_FOUND - no queue/);
    assert.equal((await owner.checkQueue(queue)).messageCount, 0);
    await connection.close();
  },

  // get, nack with requeue, and what a closed channel had come back in their places.
  async requeue() {
    const connection = await connect();
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue('', { exclusive: true });
    numbers(200).forEach((number) => channel.sendToQueue(queue, Buffer.from(String(number))));
    await channel.waitForConfirms();
    for (const number of numbers(200)) {
      const message = await channel.get(queue);
      assert.equal(Number(message.content), number);
      assert.equal(message.fields.messageCount, 199 - number);
      if (number % 4 === 0) channel.ack(message);
    }
    assert.equal(await channel.get(queue), false);
    channel.nackAll(true);
    const again = await connection.createChannel();
    const expected = numbers(200).filter((number) => number % 4 !== 0);
    const got = await take(again, queue, expected.length);
    assert.deepEqual(got.map((message) => Number(message.content)), expected);
    assert.ok(got.every((message) => message.fields.redelivered));
    await connection.close();
  },

  // The same with callbacks: topic routing, a headers exchange, priorities, a deleted queue cancels.
  callbacks() {
    return new Promise((resolve, reject) => {
      const must = (next) => (error, value) => (error ? reject(error) : next(value));
      callbacks.connect(process.env.AMQP_URL, tls, must((connection) => {
        connection.createConfirmChannel(must((channel) => {
          channel.assertQueue('', { exclusive: true, maxPriority: 9 }, must(({ queue }) => {
            channel.bindQueue(queue, 'amq.headers', '', { 'x-match': 'all', color: 'red', size: 1 }, must(() => {
              for (const number of numbers(300)) {
                const headers = { color: number % 2 ? 'red' : 'blue', size: number % 3, number };
                channel.publish('amq.headers', '', Buffer.from(String(number)), { headers, priority: number % 10 });
              }
              channel.waitForConfirms(must(() => {
                const expected = numbers(300).filter((number) => number % 2 && number % 3 === 1)
                  .sort((a, b) => (b % 10) - (a % 10) || a - b);
                const got = [];
                channel.consume(queue, (message) => {
                  if (message === null) {
                    assert.deepEqual(got, expected);
                    return connection.close(must(resolve));
                  }
                  got.push(Number(message.content));
                  channel.ack(message);
                  if (got.length === expected.length) channel.deleteQueue(queue, {}, must(() => {}));
                }, {}, must(() => {}));
              }));
            }));
          }));
        }));
      }));
    });
  },

  async stranger() {
    await assert.rejects(connect(), /unable to verify|self.signed certificate|unable to get/);
  },
};

cases[wanted]().then(
  () => console.log('ok'),
  (error) => {
    console.log(error.stack);
    process.exit(1);
  },
);
