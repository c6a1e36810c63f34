// amqp-connection-manager over a restart of the broker: node manager.js QUEUE, with AMQP_URL and AMQP_CA.
'use strict';

// Node 18 takes the first address of localhost only; the broker listens on IPv4.
require('node:dns').setDefaultResultOrder('ipv4first');

const assert = require('node:assert/strict');
const fs = require('node:fs');
const readline = require('node:readline');
const manager = require('amqp-connection-manager');

const queue = process.argv[2];
const COUNT = 900;

async function main() {
  const answers = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const connectionOptions = { ca: [fs.readFileSync(process.env.AMQP_CA)], servername: 'localhost' };
  const connection = manager.connect([process.env.AMQP_URL], { connectionOptions, reconnectTimeInSeconds: 1, heartbeatIntervalInSeconds: 5 });
  let connects = 0;
  let disconnects = 0;
  connection.on('connect', () => { connects += 1; });
  connection.on('disconnect', () => { disconnects += 1; });

  const deliveries = new Map();
  let everything;
  const allSeen = new Promise((resolve) => { everything = resolve; });
  const consumer = connection.createChannel({
    setup: async (channel) => {
      await channel.assertQueue(queue, { durable: true });
      await channel.prefetch(50);
      await channel.consume(queue, (message) => {
        const number = Number(message.content);
        deliveries.set(number, (deliveries.get(number) || 0) + 1);
        channel.ack(message);
        if (deliveries.size === COUNT) everything();
      });
    },
  });
  const producer = connection.createChannel({ confirm: true, setup: (channel) => channel.assertQueue(queue, { durable: true }) });
  await Promise.all([consumer.waitForConnect(), producer.waitForConnect()]);

  // What was in flight when the connection went is rejected, stored or not: the application sends it again.
  let rejected = 0;
  const publish = async (number) => {
    for (;;) {
      try {
        return await producer.sendToQueue(queue, Buffer.from(String(number)), { persistent: true });
      } catch (error) {
        assert.match(error.message, /channel closed/i);
        rejected += 1;
      }
    }
  };
  const confirms = [];
  for (let number = 0; number < COUNT; number += 1) {
    confirms.push(publish(number));
    if (number === COUNT / 3) {
      // The restart happens while messages are in flight; the rest is published into it.
      console.log('ask restart');
    }
    if (number % 100 === 0) await new Promise((resolve) => { setImmediate(resolve); });
  }
  assert.equal((await answers.next()).value, 'done');
  await Promise.all(confirms);
  await allSeen;
  assert.ok(connects >= 2 && disconnects >= 1, 'the connection was lost and came back');
  assert.deepEqual([...deliveries.keys()].sort((a, b) => a - b), Array.from({ length: COUNT }, (_, number) => number));
  // A message arrives once, except where it was sent again or its acknowledgement was lost with the connection.
  const copies = [...deliveries.values()].reduce((sum, count) => sum + count, 0) - COUNT;
  assert.ok(copies <= rejected + 50, `${copies} more deliveries than messages, ${rejected} sent again`);
  await connection.close();
  console.log('ok');
  process.exit(0);
}

main().catch((error) => {
  console.log(error.stack);
  process.exit(1);
});
