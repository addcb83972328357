'use strict'
// Traces with content that depends on nothing but the shape and the running number.
//
// The traced code is compiled under a fixed file name, because hypertrace reads names from the stack
// and a line must not depend on where the repository lies. Shapes:
//   typical   an id, properties at every place; about 418 bytes of JSON with pad 0
//   bare      trace() alone: no id, no properties
//   values    in turn: error, buffer, typed array, NaN, date, nested, text beyond ASCII
//   stamped   like typical, with the monotonic clock in ns as caller.props.sentAt

const vm = require('vm')

const FILENAME = '/srv/shop/lib/orders.js'

function source () {
  class Order {
    constructor (createTracer) {
      this.tracer = createTracer(this, { props: { region: 'eu-north-1', currency: 'EUR', channel: 'web' } })
    }

    place (n, padding) {
      this.tracer.trace('order-placed', { n, amount: 1999, items: 3, customer: 'c-20381', state: 'accepted', warehouse: 'north-east', ...padding })
    }

    stamp (n, padding) {
      this.tracer.trace('order-stamped', { n, sentAt: Number(process.hrtime.bigint()), ...padding })
    }

    show (value) {
      this.tracer.trace('order-value', value)
    }
  }

  class Cart {
    constructor (createTracer) {
      this.tracer = createTracer(this)
    }

    touch () {
      this.tracer.trace()
    }
  }

  const values = [
    () => ({ error: Object.assign(new Error('no stock'), { code: 'ESTOCK' }) }),
    () => ({ error: new TypeError('no code') }),
    () => ({ buffer: Buffer.from([1, 2, 255]) }),
    () => ({ array: new Uint8Array([1, 2]) }),
    () => ({ number: NaN, infinite: Infinity, negative: -0.5, large: 2 ** 53 - 1, exponent: 1e21, missing: undefined }),
    () => ({ date: new Date(0), deep: { list: [1, null, { error: new Error('inside') }] } }),
    () => ({ text: 'Jørgen \u2028 \u0007 "quoted" \\ \ud83d\ude00', truth: true, nothing: null })
  ]

  return createTracer => (shape, pad) => {
    const order = new Order(createTracer)
    const cart = new Cart(createTracer)
    const padding = pad ? { padding: 'x'.repeat(pad) } : {}
    const shapes = {
      typical: n => order.place(n, padding),
      bare: () => cart.touch(),
      values: n => order.show(values[n % values.length]()),
      stamped: n => order.stamp(n, padding)
    }
    if (!shapes[shape]) throw new Error(`unknown shape ${shape}`)
    return shapes[shape]
  }
}

module.exports = vm.runInThisContext(`(function (Buffer) { return (${source})() })`, { filename: FILENAME })(Buffer)
